"""Ranking the matched pair of a group above its mismatched ones."""

import math

import pytest
import torch

from vlp.data.batch import WEIGHT
from vlp.models.heads import ClassHead
from vlp.objectives.ranking import Ranking, RankingConfig, match_score
from vlp.types import Targets

SCORES = torch.tensor([[0.0, 2.0], [1.0, 1.0], [0.5, 0.0], [0.0, -1.0], [0.0, 3.0], [0.0, 0.0]])
"""Of six pairs: (mismatched, matched); log odds 2, 0, -0.5 and -1, 3, 0."""


def ranking(group: int) -> Ranking:
    return Ranking("itm", RankingConfig(), group)


def targets(pairs: int, group: int) -> Targets:
    values = [ranking(group).target() for _ in range(pairs)]
    weight = torch.tensor([float(value.values[WEIGHT][0]) for value in values])
    return Targets(torch.arange(pairs), {WEIGHT: weight}, float(weight.sum()))


def test_log_odds() -> None:
    assert match_score(SCORES).tolist() == [2.0, 0.0, -0.5, -1.0, 3.0, 0.0]


def test_the_loss_is_a_sum_over_groups_and_the_first_pair_is_the_matched_one() -> None:
    total, metrics = ranking(3).loss(SCORES, targets(6, 3))
    by_hand = [math.log(sum(math.exp(score - odds[0]) for score in odds)) for odds in ((2, 0, -0.5), (-1, 3, 0))]
    assert float(total) == pytest.approx(sum(by_hand))
    assert [float(value) for value in metrics["itm_accuracy"]] == [1.0, 2.0]
    one, metrics = ranking(2).loss(SCORES[:2], targets(2, 2))
    assert float(one) == pytest.approx(math.log(1 + math.exp(-2)))
    assert [float(value) for value in metrics["itm_accuracy"]] == [1.0, 1.0]


def test_the_count_is_the_number_of_groups() -> None:
    assert targets(6, 3).count == pytest.approx(2)
    assert targets(8, 2).count == 4


def test_no_pairs_cost_nothing() -> None:
    total, metrics = ranking(3).loss(SCORES[:0], targets(0, 3))
    assert total == 0
    assert metrics["itm_accuracy"][1] == 0


def test_its_head_is_that_of_matching() -> None:
    assert ranking(2).head() == ClassHead(reads="example", classes=2)


def config(**more: object) -> RankingConfig:
    return RankingConfig.parse(more)


def chance(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))


GROUPS = ((2, 0, -0.5), (-1, 3, 0))


def test_triplet_loss_by_hand() -> None:
    total, _ = Ranking("itm", config(loss="triplet", margin=0.3), 3).loss(SCORES, targets(6, 3))
    wanted = sum(max(0, 0.3 + chance(other) - chance(odds[0])) for odds in GROUPS for other in odds[1:])
    assert float(total) == pytest.approx(wanted)


def test_binary_loss_by_hand() -> None:
    total, _ = Ranking("itm", config(loss="binary"), 3).loss(SCORES, targets(6, 3))
    wanted = 0.0
    for odds in GROUPS:
        wanted -= math.log(chance(odds[0])) + sum(math.log(1 - chance(other)) for other in odds[1:]) / 2
    assert float(total) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "triplet", "binary"])
def test_only_the_hardest_negatives_count(loss: str) -> None:
    hard = Ranking("itm", config(loss=loss, hardest=1), 3)
    total, metrics = hard.loss(SCORES, targets(6, 3))
    # Of (0, -0.5) and (3, 0) the first are the hardest: rows 1 and 4.
    kept = SCORES[[0, 1, 3, 4]]
    wanted, _ = Ranking("itm", config(loss=loss), 2).loss(kept, targets(4, 2))
    assert float(total) == pytest.approx(float(wanted))
    assert float(metrics["itm_accuracy"][0]) == 1
    scores = SCORES.clone().requires_grad_()
    hard.loss(scores, targets(6, 3))[0].backward()
    assert scores.grad is not None
    assert scores.grad[[2, 5]].abs().sum() == 0  # the easy ones teach nothing
    assert Ranking("itm", config(loss=loss, hardest=9), 3).loss(SCORES, targets(6, 3))[0] > 0
