"""Ranking a pair above mismatched ones, within a group of a matched pair and its negatives.

Shape suffixes: K pairs, G groups, P pairs of a group, Q negatives of a group.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vlp.data.batch import WEIGHT
from vlp.models.heads import ClassHead, HeadConfig
from vlp.objectives.objective import Objective, ObjectiveConfig, empty_positions
from vlp.types import Rows, Target, Targets


class RankingConfig(ObjectiveConfig):
    """Settings of ranking."""

    kind: Literal["ranking"] = "ranking"
    loss: Literal["softmax", "triplet", "binary"] = "softmax"
    """`softmax`: cross entropy of the matched pair among its group (Lu et al. 2019, arXiv 1908.02265, section 4).
    `triplet`: for each negative, how far its probability of a match comes within `margin` of the matched pair's, as
    the code of Chen et al. 2020 (arXiv 1909.11740) does. `binary`: matched or not, for each pair by itself; the
    matched pair weighs as much as all negatives together."""
    margin: float = Field(0.2, gt=0, lt=1)
    """Of the triplet loss; 0.2 as in Chen et al. 2020."""
    hardest: int | None = Field(None, ge=1)
    """Of a group's negatives, only so many that the model itself scores highest count: hard negatives, mined anew at
    each step. 1 is the maximum of hinges (Faghri et al. 2018, arXiv 1707.05612, 3.2). Null for all."""


class Ranking(Objective):
    """The matched pair, which comes first in its group, against the group's others.

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
        right = (match_GP.detach().argmax(1) == 0).sum()
        metrics = {f"{self.name}_accuracy": (right, float(len(match_GP)))}
        matched_G1, negative_GQ = match_GP[:, :1], self._hardest(match_GP[:, 1:])
        match self.config.loss:
            case "triplet":
                return F.relu(self.config.margin + negative_GQ.sigmoid() - matched_G1.sigmoid()).sum(), metrics
            case "binary":
                # log(1 + exp(-x)) of the log odds is the two-way cross entropy.
                return F.softplus(-matched_G1).sum() + F.softplus(negative_GQ).mean(dim=1).sum(), metrics
            case "softmax":
                first_G = targets.positions_K.new_zeros(len(match_GP))
                return F.cross_entropy(torch.cat([matched_G1, negative_GQ], 1), first_G, reduction="sum"), metrics

    def _hardest(self, negative_GQ: Tensor) -> Tensor:
        if self.config.hardest is None or self.config.hardest >= negative_GQ.shape[1]:
            return negative_GQ
        return negative_GQ.topk(self.config.hardest, dim=1).values


def match_score(scores_K2: Tensor) -> Tensor:
    """Log odds of matched, [K], from the matching head's two scores (1 is matched)."""
    return scores_K2[:, 1] - scores_K2[:, 0]
