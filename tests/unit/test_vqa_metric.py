"""The challenge's accuracy, on cases worked by hand."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp.metrics.vqa import commonest, normalise, soft_scores


@pytest.mark.parametrize(
    ("given_by", "score"),
    [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_ten_answers(given_by: int, score: float) -> None:
    # 3 of 10: in 3 of the 10 ways to leave one person out 2 are left (2/3), in 7 all 3 are (1): 0.3 * 2/3 + 0.7 = 0.9.
    answers = ["red"] * given_by + [f"other {number}" for number in range(10 - given_by)]
    assert soft_scores(answers)["red"] == pytest.approx(score)


def test_an_answer_nobody_gave_has_no_score() -> None:
    assert set(soft_scores(["a", "b", "b"])) == {"a", "b"}
    assert soft_scores([]) == {}


@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=10))
def test_against_leaving_one_out(answers: list[str]) -> None:
    for answer, score in soft_scores(answers).items():
        ways = list(combinations(answers, len(answers) - 1))
        assert score == pytest.approx(sum(min(1, way.count(answer) / 3) for way in ways) / len(ways))


def test_with_fewer_people_a_full_score_stays_possible() -> None:
    assert soft_scores(["red"]) == {"red": 1.0}
    assert soft_scores(["red", "red"]) == {"red": 1.0}
    assert soft_scores(["red", "red", "red"]) == {"red": 1.0}
    assert soft_scores(["red", "blue"]) == {"red": 0.5, "blue": 0.5}


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Yes", "yes"),
        ("  a  red   car ", "red car"),
        ("The cat", "cat"),
        ("an apple", "apple"),
        ("two", "2"),
        ("None", "0"),
        ("zero", "0"),
        ("ten dogs", "10 dogs"),
        ("someone", "someone"),
        ("theatre", "theatre"),
        ("red, white and blue!", "red white and blue"),
        ("black/white", "black white"),
        ("on-off", "on off"),
        ("on - off", "on off"),
        ("3.5", "3.5"),
        ("p.m.", "pm"),
        ("1,000", "1000"),
        ("don't", "don't"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("oclock", "o'clock"),
        ("its", "its"),
        ("were", "were"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        ("it is a, b", "it is b"),
        ("1.5.", "1.5"),
        ("blue-and-white", "blue and white"),
        ("?", ""),
        ("café", "café"),
        ("line\nbreak\ttab", "line break tab"),
    ],
)
def test_normalised(answer: str, plain: str) -> None:
    assert normalise(answer) == plain
    assert normalise(plain) == plain


@given(st.lists(st.sampled_from("abcd"), min_size=10, max_size=10), st.sampled_from("abcde"))
def test_ten_people_against_the_published_formula(answers: list[str], said: str) -> None:
    """Each person in turn is left out; the answer is right by a third for each of the others who gave it."""
    total = 0.0
    for place in range(10):
        others = answers[:place] + answers[place + 1 :]
        total += min(1.0, sum(answer == said for answer in others) / 3)
    assert soft_scores(answers).get(said, 0.0) == pytest.approx(total / 10)


def test_the_commonest_answer() -> None:
    assert commonest(["b", "a", "a"]) == "a"
    assert commonest(["b", "a"]) == "b"
    assert commonest([]) is None
