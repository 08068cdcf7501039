"""Answering a question by choosing from an answer vocabulary, with soft scores. Source: Teney et al. 2018 (arXiv
1708.02711), section 3.4: binary cross entropy against the answers' soft accuracies.

Shape suffixes: K questions, A answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vlp.data.batch import WEIGHT
from vlp.models.heads import ClassHead, HeadConfig
from vlp.objectives.objective import Objective, ObjectiveConfig, empty_positions, precise
from vlp.types import Rows, Target, Targets


class AnswerConfig(ObjectiveConfig):
    """Settings of answering."""

    kind: Literal["answer"] = "answer"
    loss: Literal["bce", "kl", "cross_entropy"] = "bce"
    """Binary cross entropy summed over answers; or, with the normalised scores, divergence or cross entropy."""


class Answer(Objective):
    """Guess the answers' soft scores from the pooled vector.

    Args:
        answers: size of the vocabulary.
    """

    rows: Rows = "example"

    def __init__(self, name: str, config: AnswerConfig, answers: int) -> None:
        super().__init__(name)
        self.config = config
        self.answers = answers

    def head(self) -> HeadConfig:
        return ClassHead(reads="example", classes=self.answers, inner="double")

    def empty(self) -> Target:
        values = {"score": np.zeros((0, self.answers), np.float32), WEIGHT: np.zeros(0, np.float32)}
        return Target(empty_positions(), values)

    def target(self, scores: Mapping[int, float], *, answered: bool = True) -> Target:
        """The target of a question whose answers have these scores, by their number in the vocabulary.

        A question of a split without answers (`answered` false) counts for nothing.
        """
        score_1A = np.zeros((1, self.answers), np.float32)
        for answer, score in scores.items():
            score_1A[0, answer] = score
        return Target(np.zeros(1, np.int64), {"score": score_1A, WEIGHT: np.full(1, answered, np.float32)})

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        score_KA, weight_K = targets.values["score"], targets.values[WEIGHT]
        right_K = score_KA.gather(1, scores_K.detach().argmax(-1, keepdim=True))
        metrics = {f"{self.name}_accuracy": (right_K.sum(), targets.count)}
        if self.config.loss == "bce":
            loss_KA = F.binary_cross_entropy_with_logits(precise(scores_K), score_KA, reduction="none")
        else:
            wanted_KA = score_KA / score_KA.sum(dim=1, keepdim=True).clamp_min(1e-6)
            guess_KA = precise(scores_K).log_softmax(-1)
            kl = self.config.loss == "kl"
            loss_KA = F.kl_div(guess_KA, wanted_KA, reduction="none") if kl else -wanted_KA * guess_KA
        return (loss_KA.sum(1) * weight_K).sum(), metrics
