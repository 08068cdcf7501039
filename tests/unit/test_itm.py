"""Matching: which pairs are torn apart, and what telling costs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.task_making import block, example, facts, hidden, within_3_sigma
from vlp.errors import ConfigError
from vlp.models.heads import ClassHead
from vlp.objectives.itm import Matching, MatchingConfig, other_sample, other_text
from vlp.objectives.objective import Facts
from vlp.seeds import Draws, draw
from vlp.types import Pair, Targets


def objective(**config: object) -> Matching:
    return Matching("itm", MatchingConfig.parse(config), facts())


@pytest.mark.parametrize("replace", ["image", "text"])
@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_so_many_are_mismatched(replace: str, probability: float) -> None:
    made, rng = objective(replace=replace, probability=probability), draw(0, "t")
    tables = block(2, 1, 3)
    pairs = [made.mismatch(3, tables, rng) for _ in range(5000)]
    assert within_3_sigma(sum(not pair.matched for pair in pairs), 5000, probability)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=6), st.sampled_from(["image", "text"]), st.integers(0, 999))
def test_a_mismatch_is_never_of_its_own_sample(texts: list[int], replace: str, seed: int) -> None:
    made, rng = objective(replace=replace, probability=0.9), draw(seed, "t")
    tables = block(*texts)
    for number in range(sum(texts)):
        pair = made.mismatch(number, tables, rng)
        assert pair.matched == (int(tables.sample_E[pair.text]) == pair.image)
        assert pair.image == tables.sample_E[number] or (replace == "image" and not pair.matched)
        assert pair.text == number or (replace == "text" and not pair.matched)


def test_either_is_replaced_as_often() -> None:
    made, rng = objective(replace="either", probability=1), draw(0, "t")
    pairs = [made.mismatch(3, block(2, 1, 3), rng) for _ in range(2000)]
    assert not any(pair.matched for pair in pairs)
    assert within_3_sigma(sum(pair.image != 2 for pair in pairs), 2000, 0.5)
    assert all((pair.image != 2) != (pair.text != 3) for pair in pairs)


@pytest.mark.parametrize("replace", ["image", "text", "either", "second_text"])
def test_none_or_all_may_be_mismatched(replace: str) -> None:
    for probability in (0, 1):
        made = objective(replace=replace, probability=probability)
        pairs = [made.mismatch(3, block(2, 1, 3), draw(seed, "t")) for seed in range(50)]
        assert {pair.matched for pair in pairs} == {probability == 0}


def test_a_second_text_is_another_of_the_image_s_or_of_another_image() -> None:
    made, rng, tables = objective(replace="second_text", probability=0.3), draw(0, "t"), block(2, 1, 3)
    pairs = [made.mismatch(4, tables, rng) for _ in range(3000)]
    assert all((pair.image, pair.text) == (2, 4) for pair in pairs)  # the first text is the image's in any case
    assert within_3_sigma(sum(not pair.matched for pair in pairs), 3000, 0.3)
    assert {pair.second for pair in pairs if pair.matched} == {3, 5}
    assert {pair.second for pair in pairs if not pair.matched} == {0, 1, 2}
    assert {pair.texts for pair in pairs} == {(4, other) for other in (0, 1, 2, 3, 5)}


def test_an_image_with_one_text_has_no_second_and_tells_nothing() -> None:
    made = objective(replace="second_text", probability=0.9)
    assert {made.mismatch(2, block(2, 1, 3), draw(seed, "t")) for seed in range(20)} == {Pair(1, 2)}
    alone = example()
    assert len(made.target(hidden(alone), draw(0, "t")).positions) == 0
    alone.segment_T = np.zeros(len(alone.token_ids_T), np.int64)
    assert len(made.target(hidden(alone), draw(0, "t")).positions) == 1


def test_what_is_told_of_each_of_many_is_its_own() -> None:
    made, many = objective(replace="second_text"), []
    for matched, second in ((True, True), (True, False), (False, True), (True, True)):
        one = example(matched=matched)
        one.segment_T = np.zeros(len(one.token_ids_T), np.int64) if second else None
        many.append(hidden(one))
    asked = made.targets(many, Draws(range(4)))
    assert asked.counts_B.tolist() == [1, 0, 1, 1]
    assert asked.positions_K.tolist() == [0, 0, 0]
    assert asked.values["matched"].tolist() == [1, 0, 1]


def test_a_model_without_a_second_segment_is_refused() -> None:
    made = facts()
    parts = [{"kind": "word"}, {"kind": "segment", "rows": 1}]
    text = type(made.model.text).parse({**made.model.text.plain(), "parts": parts})
    with pytest.raises(ConfigError, match=r"task\.objectives\.itm\.replace: second_text needs a segment .* rows: 2"):
        Matching(
            "itm",
            MatchingConfig(replace="second_text"),
            Facts(made.model.model_copy(update={"text": text}), made.text),
        )


def test_every_text_of_another_sample_is_as_likely() -> None:
    drawn = np.bincount([other_text(1, block(2, 3, 1), draw(seed, "t")) for seed in range(3000)], minlength=6)  # type: ignore[arg-type]
    assert not drawn[2:5].any()
    assert all(within_3_sigma(int(drawn[place]), 3000, 1 / 3) for place in (0, 1, 5))


def test_every_other_sample_is_as_likely() -> None:
    drawn = np.bincount([other_sample(1, block(1, 1, 1, 1), draw(seed, "t")) for seed in range(3000)])
    assert drawn[1] == 0
    assert all(within_3_sigma(int(drawn[place]), 3000, 1 / 3) for place in (0, 2, 3))


def test_a_sample_alone_stays_whole() -> None:
    for replace in ("image", "text"):
        made = objective(replace=replace, probability=0.99)
        pairs = {made.mismatch(1, block(3), draw(seed, "t")) for seed in range(20)}
        assert pairs == {Pair(0, 1, matched=True)}


def test_a_text_is_not_taken_from_where_there_is_none() -> None:
    made = objective(replace="text", probability=0.99)
    for seed in range(20):  # the other samples have no text: the pair cannot be mismatched, and must not be called so
        assert made.mismatch(1, block(2, 0, 0), draw(seed, "t")) == Pair(0, 1, matched=True)


def test_matched_is_1() -> None:
    made = objective()
    labels = [made.target(hidden(example(matched=m)), draw(0, "t")).values["matched"] for m in (True, False)]
    assert [label.tolist() for label in labels] == [[1], [0]]


def test_the_loss_is_a_sum_of_two_way_cross_entropies() -> None:
    scores = torch.tensor([[0.0, 3.0], [2.0, -1.0], [4.0, 0.0]])
    targets = Targets(torch.arange(3), {"matched": torch.tensor([1, 0, 1])}, 3.0)
    total, metrics = objective().loss(scores, targets)
    gaps = torch.tensor([3.0, 3.0, -4.0])  # of the right score over the other
    torch.testing.assert_close(total, torch.log1p(torch.exp(-gaps)).sum())
    assert [float(value) for value in metrics["itm_accuracy"]] == [2.0, 3.0]
    assert objective().head() == ClassHead(reads="example", classes=2)


def test_a_matched_pair_may_be_label_0() -> None:
    scores, matched = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0])
    made = Targets(torch.arange(2), {"matched": matched}, 2.0)
    one, zero = (
        Matching("itm", MatchingConfig.parse({"matched_label": label}), facts()).loss(scores, made) for label in (1, 0)
    )
    log = scores.log_softmax(1)
    torch.testing.assert_close(one[0], -log[0, 1] - log[1, 0])
    torch.testing.assert_close(zero[0], -log[0, 0] - log[1, 1])
    assert (float(one[1]["itm_accuracy"][0]), float(zero[1]["itm_accuracy"][0])) == (0, 2)
