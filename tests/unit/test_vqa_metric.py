"""The challenge's accuracy, on cases worked by hand."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp.metrics.vqa import normalise, soft_scores


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
        ("don't", "dont"),
        ("dont", "dont"),
        ("?", ""),
        ("café", "café"),
        ("line\nbreak\ttab", "line break tab"),
    ],
)
def test_normalised(answer: str, plain: str) -> None:
    assert normalise(answer) == plain
    assert normalise(plain) == plain
