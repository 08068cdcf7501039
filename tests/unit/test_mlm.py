"""Hiding words: how many, which, by what, and what guessing them costs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.unit.task_making import example, facts, hidden, text_encoder, within_3_sigma
from vlp.data.batch import WEIGHT
from vlp.data.packing import starts_of
from vlp.objectives.choice import choose_each, parts, places_in_each
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig
from vlp.seeds import Draws, draw
from vlp.types import Targets

LONG = 100_000
"""Tokens; so many that 3 sigma of 15 % are 0.34 %."""


def objective(**config: float) -> MaskedLanguage:
    return MaskedLanguage("mlm", MaskedLanguageConfig(**config), facts())


@pytest.mark.parametrize("probability", [0.15, 0.5])
def test_so_many_are_hidden_and_so(probability: float) -> None:
    made = example(LONG)
    made.token_ids_T[1:-1] = 7  # no id that a random token could be mistaken for
    masked = objective(probability=probability)
    masked.random_ids = np.array([8, 9])
    target = masked.target(hidden(made), draw(1, "t"))
    chosen, after = len(target.positions), made.token_ids_T[target.positions]
    assert within_3_sigma(chosen, LONG, probability)
    assert within_3_sigma(int((after == text_encoder().mask_id).sum()), chosen, 0.8)
    assert within_3_sigma(int(np.isin(after, [8, 9]).sum()), chosen, 0.1)
    assert within_3_sigma(int((after == 7).sum()), chosen, 0.1)
    assert within_3_sigma(int((after == 8).sum()), int(np.isin(after, [8, 9]).sum()), 0.5)
    untouched = np.delete(made.token_ids_T, target.positions)
    assert set(untouched[1:-1]) == {7}
    assert (target.values["token"] == 7).all()


def test_the_shares_are_the_configs() -> None:
    made = example(1000)
    before = made.token_ids_T.copy()
    target = objective(probability=1, mask=0, random=0).target(hidden(made), draw(1, "t"))
    assert (made.token_ids_T == before).all()  # all are guessed, none is hidden
    assert target.positions.tolist() == list(range(1, 1001))
    objective(probability=1, mask=1, random=0).target(hidden(made), draw(1, "t"))
    assert (made.token_ids_T[1:-1] == text_encoder().mask_id).all()


@given(st.integers(1, 5), st.integers(0, 999))
def test_at_least_one_is_hidden_and_a_special_never(words: int, seed: int) -> None:
    made = example(words)
    before = made.token_ids_T
    kept = before.copy()
    target = objective(probability=0.01).target(hidden(made), draw(seed, "t"))
    assert len(target.positions) >= 1
    assert not made.special_T[target.positions].any()
    assert (target.values["token"] == kept[target.positions]).all()
    assert (before == kept).all()  # the tokenizer's array is not written into


def test_each_word_is_the_one_when_none_was_drawn() -> None:
    draw_N = Draws(range(60)).uniform([4] * 60)
    chosen_N = choose_each(draw_N, starts_of([4] * 60), 1e-9)
    drawn = {int(places_K.item()) for places_K in parts(*places_in_each(chosen_N, starts_of([4] * 60)))}
    assert drawn == {0, 1, 2, 3}


def test_a_text_without_words_gives_no_target() -> None:
    target = objective().target(hidden(example(0)), draw(0, "t"))
    assert len(target.positions) == len(target.values["token"]) == 0


def test_a_random_token_is_never_special() -> None:
    encoder = text_encoder()
    made = example(5000)
    objective(probability=1, mask=0, random=1).target(hidden(made), draw(0, "t"))
    specials = [encoder.cls_id, encoder.sep_id, encoder.mask_id]
    assert not np.isin(made.token_ids_T[1:-1], specials).any()
    assert len(set(made.token_ids_T[1:-1])) == encoder.vocab_size - 5


def test_the_same_generator_hides_the_same() -> None:
    first, again, other = example(50), example(50), example(50)
    targets = [objective().target(hidden(made), draw(seed, "t")) for made, seed in ((first, 3), (again, 3), (other, 4))]
    assert (targets[0].positions == targets[1].positions).all()
    assert (first.token_ids_T == again.token_ids_T).all()
    assert targets[0].positions.tolist() != targets[2].positions.tolist()


def test_the_loss_is_a_sum_of_cross_entropies() -> None:
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4, 0, 19])
    scores[0, 4] = 9.0  # one that is right
    targets = Targets(torch.arange(3), {"token": labels}, 3.0)
    total, metrics = objective().loss(scores, targets)
    by_hand = sum(torch.log(row.exp().sum()) - row[label] for row, label in zip(scores, labels, strict=True))
    torch.testing.assert_close(total, by_hand)
    right, count = metrics["mlm_accuracy"]
    assert count == 3
    assert right == (scores.argmax(1) == labels).sum() >= 1
    assert objective().loss(scores.bfloat16(), targets)[0].dtype == torch.float32
    empty = objective().loss(scores[:0], Targets(torch.arange(0), {"token": labels[:0]}, 0.0))[0]
    assert empty == 0
    torch.testing.assert_close(F.cross_entropy(scores, labels, reduction="sum"), total)


def test_the_mean_may_be_over_examples_first() -> None:
    examples_first = MaskedLanguage("mlm", MaskedLanguageConfig.parse({"average": "examples"}), facts())
    target = examples_first.target(hidden(example(words=8)), draw(0, "t"))
    shares = target.values[WEIGHT]
    assert shares.sum() == pytest.approx(1)
    assert len(set(shares.tolist())) == 1
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4, 0, 19])
    each = F.cross_entropy(scores, labels, reduction="none")
    weights = torch.tensor([0.5, 0.5, 1.0])  # two targets of one example, one of another
    total, _ = examples_first.loss(scores, Targets(torch.arange(3), {"token": labels, WEIGHT: weights}, 2.0))
    torch.testing.assert_close(total, (each[0] + each[1]) / 2.0001 + each[2] / 1.0001)


def test_a_momentum_model_gives_part_of_the_targets() -> None:
    scores, teacher = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4, 0, 19])
    survey = {"teacher": teacher, "alpha": torch.tensor(0.3)}
    total, metrics = objective().loss(scores, Targets(torch.arange(3), {"token": labels}, 3.0, survey))
    by_hand = 0.0
    for row, slow, label in zip(scores.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        odds, all_odds = [np.exp(each) for each in row], sum(np.exp(row))
        slow_odds = [np.exp(each) for each in slow]
        for word in range(20):
            wanted = 0.3 * slow_odds[word] / sum(slow_odds) + 0.7 * (word == label)
            by_hand -= wanted * np.log(odds[word] / all_odds)
    assert float(total) == pytest.approx(by_hand, rel=1e-5)
    assert metrics["mlm_accuracy"][1] == 3


def test_what_becomes_of_a_token_has_nothing_to_do_with_its_choice() -> None:
    many = [hidden(example(words=2)) for _ in range(4000)]
    targets = objective(probability=0.5).targets(many, Draws(range(4000)))
    both = [each.example for each, count in zip(many, targets.counts_B.tolist(), strict=True) if count == 2]
    assert len(both) > 900
    for place in (1, 2):
        masked = sum(one.token_ids_T[place] == text_encoder().mask_id for one in both)
        assert within_3_sigma(int(masked), len(both), 0.8)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_what_is_hidden_of_a_text_is_its_own_whatever_stands_beside_it(unit: str) -> None:
    made = MaskedLanguage("mlm", MaskedLanguageConfig.parse({"unit": unit, "probability": 0.3}), facts())
    sizes = (6, 0, 1, 30, 2) * 5
    together = [hidden(example(words)) for words in sizes]
    targets = made.targets(together, Draws([draw(number, "t").key for number in range(len(sizes))]))
    ends = targets.counts_B.cumsum()
    for number, words in enumerate(sizes):
        alone = hidden(example(words))
        target = made.target(alone, draw(number, "t"))
        own = slice(ends[number] - targets.counts_B[number], ends[number])
        assert target.positions.tolist() == targets.positions_K[own].tolist()
        assert target.values["token"].tolist() == targets.values["token"][own].tolist()
        assert alone.example.token_ids_T.tolist() == together[number].example.token_ids_T.tolist()
        assert (len(target.positions) > 0) == (words > 0)
    assert not len(made.targets([hidden(example(0))], Draws([1])).positions_K)
