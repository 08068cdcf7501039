"""Guessing words of the vocabulary: what masked and prefix language modelling have in common.

Shape suffixes: K guessed words, V vocabulary.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.models.crossentropy import few, linear_cross_entropy
from vlp.models.heads import Head, HeadConfig, VocabularyHead
from vlp.objectives.gallery import soft_cross_entropy
from vlp.objectives.objective import (
    Average,
    Facts,
    Judged,
    SelfSupervised,
    accuracy,
    averaged,
    empty_positions,
    factors,
    precise,
    shares,
)
from vlp.types import Encoded, Rows, Target, Targets


class WordGuessing(SelfSupervised):
    """Cross entropy of words by the vocabulary head, which runs on the guessed ones alone.

    Args:
        average: what the loss is a mean over.
    """

    rows: Rows = "text"
    hides = "text"

    def __init__(self, name: str, facts: Facts, average: Average = "targets") -> None:
        super().__init__(name)
        self.average = average
        self._words = facts.text.vocab_size

    def head(self) -> HeadConfig:
        return VocabularyHead()

    def empty(self) -> Target:
        return Target(
            empty_positions(), {"token": np.zeros(0, np.int64), **shares(self.average, np.zeros(1, np.int64))}
        )

    def judged(self, head: nn.Module | None, encoded: Encoded, targets: Targets) -> Judged:
        """As `loss` of `scores`; where those would be many, a part of them at a time."""
        labels_K = targets.values["token"]
        assert isinstance(head, Head)
        if few(len(labels_K), self._words) or "teacher" in targets.survey or not head.tied:
            return super().judged(head, encoded, targets)
        last = partial(linear_cross_entropy, labels_K=labels_K, factor_K=factors(targets, self.average))
        total, right = head(self.states(encoded, targets), last)
        return total, {f"{self.name}_accuracy": (right, float(len(labels_K)))}

    def loss(self, scores_K: Tensor, targets: Targets) -> Judged:
        labels_K, survey = targets.values["token"], targets.survey
        if "teacher" in survey:
            loss_K = soft_cross_entropy(precise(scores_K), precise(survey["teacher"]), labels_K, survey["alpha"])
        else:
            loss_K = F.cross_entropy(precise(scores_K), labels_K, reduction="none")
        return averaged(loss_K, targets, self.average), {f"{self.name}_accuracy": accuracy(scores_K, labels_K)}
