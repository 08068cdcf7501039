"""Answering by choosing from a vocabulary with soft scores."""

import math

import pytest
import torch

from vlp.data.batch import WEIGHT
from vlp.models.heads import ClassHead
from vlp.objectives.answer import Answer, AnswerConfig
from vlp.types import Targets

SCORES = torch.tensor([[2.0, -1.0, 0.0], [0.5, 0.5, 3.0]])
WANTED = torch.tensor([[1.0, 0.0, 0.6], [0.9, 0.3, 0.0]])


def objective(loss: str = "bce") -> Answer:
    return Answer("answer", AnswerConfig.parse({"loss": loss}), 3)


def targets(weights: tuple[float, ...] = (1.0, 1.0)) -> Targets:
    return Targets(torch.arange(2), {"score": WANTED, WEIGHT: torch.tensor(weights)}, sum(weights))


def bce(rows: range) -> float:
    total = 0.0
    for row in rows:
        for score, wanted in zip(SCORES[row].tolist(), WANTED[row].tolist(), strict=True):
            chance = 1 / (1 + math.exp(-score))
            total -= wanted * math.log(chance) + (1 - wanted) * math.log(1 - chance)
    return total


def divergence(row: int) -> float:
    wanted = [score / sum(WANTED[row].tolist()) for score in WANTED[row].tolist()]
    whole = math.log(sum(math.exp(score) for score in SCORES[row].tolist()))
    pairs = zip(wanted, SCORES[row].tolist(), strict=True)
    return sum(p * (math.log(p) - (s - whole)) for p, s in pairs if p)


def test_binary_cross_entropy_is_summed_over_answers() -> None:
    assert float(objective().loss(SCORES, targets())[0]) == pytest.approx(bce(range(2)))


def test_divergence_is_from_the_normalised_scores() -> None:
    assert float(objective("kl").loss(SCORES, targets())[0]) == pytest.approx(divergence(0) + divergence(1), rel=1e-5)


def test_a_question_without_answers_counts_for_nothing() -> None:
    assert float(objective().loss(SCORES, targets((1.0, 0.0)))[0]) == pytest.approx(bce(range(1)))
    assert float(objective("kl").loss(SCORES, targets((1.0, 0.0)))[0]) == pytest.approx(divergence(0), rel=1e-5)
    unanswered = objective().target({}, answered=False)
    assert unanswered.values[WEIGHT].tolist() == [0.0]
    # One whose answers are all outside the vocabulary was answered: the model should say none of what it knows.
    assert objective().target({}).values[WEIGHT].tolist() == [1.0]


def test_accuracy_is_the_score_of_the_best_answer() -> None:
    _, metrics = objective().loss(SCORES, targets())
    right, count = metrics["answer_accuracy"]
    assert (float(right), count) == (1.0, 2.0)  # the first row's best answer scores 1, the second's 0


def test_the_target_holds_the_scores_at_their_numbers() -> None:
    target = objective().target({2: 0.6, 0: 1.0})
    assert target.values["score"].tolist() == [[1.0, 0.0, pytest.approx(0.6)]]
    assert target.positions.tolist() == [0]


def test_no_questions_cost_nothing() -> None:
    empty = Targets(torch.arange(0), {"score": WANTED[:0], WEIGHT: torch.zeros(0)}, 0.0)
    for loss in ("bce", "kl"):
        assert objective(loss).loss(SCORES[:0], empty)[0] == 0
    assert objective().head() == ClassHead(reads="example", classes=3, inner="double")


def test_cross_entropy_is_the_divergence_and_the_scores_entropy() -> None:
    one = Targets(torch.arange(2), {"score": torch.eye(3)[[0, 2]], WEIGHT: torch.tensor([1.0, 0.0])}, 1.0)
    by_hand = -SCORES.log_softmax(1)[0, 0]
    torch.testing.assert_close(objective("cross_entropy").loss(SCORES, one)[0], by_hand)
    cross, kl = (objective(loss).loss(SCORES, targets())[0] for loss in ("cross_entropy", "kl"))
    wanted = WANTED / WANTED.sum(1, keepdim=True)
    entropy = -(wanted * wanted.clamp_min(1e-9).log()).sum()
    torch.testing.assert_close(cross, kl + entropy)
