"""Ranking a pair above mismatched ones: softmax over a group of a matched pair and its negatives. Source: Lu et al.
2019 (arXiv 1908.02265), section 4 (caption-based image retrieval as multiple choice).

Shape suffixes: K pairs, G groups, P pairs of a group.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vlp.data.batch import WEIGHT
from vlp.models.heads import ClassHead, HeadConfig
from vlp.objectives.objective import Objective, ObjectiveConfig, empty_positions
from vlp.types import Rows, Target, Targets


class RankingConfig(ObjectiveConfig):
    """Settings of ranking."""

    kind: Literal["ranking"] = "ranking"


class Ranking(Objective):
    """Cross entropy of the matched pair, which comes first in its group, against the group's others.

    Its head is that of matching, so a model pre-trained with matching ranks from the start.

    Args:
        group: pairs of a group.
    """

    rows: Rows = "example"

    def __init__(self, name: str, config: RankingConfig, group: int) -> None:
        super().__init__(name)
        self.config = config
        self.group = group

    def head(self) -> HeadConfig:
        return ClassHead(reads="example", classes=2)

    def empty(self) -> Target:
        return Target(empty_positions(), {WEIGHT: np.zeros(0, np.float32)})

    def target(self) -> Target:
        """The target of one pair: a share of its group, so that the count is the number of groups."""
        return Target(np.zeros(1, np.int64), {WEIGHT: np.full(1, 1 / self.group, np.float32)})

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        match_GP = match_score(scores_K.float()).view(-1, self.group)
        first_G = match_GP.new_zeros(len(match_GP), dtype=targets.positions_K.dtype)
        total = F.cross_entropy(match_GP, first_G, reduction="sum")
        right = (match_GP.detach().argmax(1) == 0).sum()
        return total, {f"{self.name}_accuracy": (right, float(len(match_GP)))}


def match_score(scores_K2: Tensor) -> Tensor:
    """Log odds of matched, [K], from the matching head's two scores (1 is matched)."""
    return scores_K2[:, 1] - scores_K2[:, 0]
