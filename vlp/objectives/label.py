"""Choosing one of some labels for an (image, text) pair: cross entropy.

Shape suffixes: K pairs, C labels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vlp.models.heads import ClassHead, HeadConfig
from vlp.objectives.objective import Objective, ObjectiveConfig, accuracy, empty_positions
from vlp.types import Rows, Target, Targets


class LabelConfig(ObjectiveConfig):
    """Settings of labelling."""

    kind: Literal["label"] = "label"
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of a target that is spread over all labels (Szegedy et al. 2016, arXiv 1512.00567, section 7)."""


class Label(Objective):
    """Guess the label from the pooled vector.

    Args:
        labels: how many there are.
    """

    rows: Rows = "example"

    def __init__(self, name: str, config: LabelConfig, labels: int) -> None:
        super().__init__(name)
        self.config = config
        self.labels = labels

    def head(self) -> HeadConfig:
        return ClassHead(reads="example", classes=self.labels, inner="same")

    def empty(self) -> Target:
        return Target(empty_positions(), {"label": np.zeros(0, np.int64)})

    def target(self, label: int) -> Target:
        """The target of a pair that has this label."""
        return Target(np.zeros(1, np.int64), {"label": np.full(1, label, np.int64)})

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        label_K = targets.values["label"]
        total = F.cross_entropy(scores_K.float(), label_K, reduction="sum", label_smoothing=self.config.smoothing)
        return total, {f"{self.name}_accuracy": accuracy(scores_K, label_K)}
