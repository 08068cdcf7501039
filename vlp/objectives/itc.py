"""Image-text contrast: the vector of a text is nearest to that of its image, and the other way round. Source: Radford
et al. 2021 (arXiv 2103.00020), section 2.3; over unimodal states as in Li et al. 2021 (arXiv 2107.07651), 3.2.

Pairs are contrasted within groups that a task draws before anything is read. A group stays in one micro-batch, so the
loss does not depend on how a step is split.

Shape suffixes: K pairs, G groups, P pairs of a group, B examples, D width of a vector, H of a state.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.data.batch import WEIGHT
from vlp.models.heads import ContrastHead, HeadConfig
from vlp.objectives.objective import Objective, ObjectiveConfig, empty_positions
from vlp.types import Batch, Encoded, Packing, Rows, Target, Targets

Pool = Literal["first", "mean"]
_SIDES = ("text", "image")


class ContrastConfig(ObjectiveConfig):
    """Settings of contrast."""

    kind: Literal["contrast"] = "contrast"
    group: int = Field(64, ge=2)
    """Pairs that are contrasted with each other."""
    width: int = Field(256, gt=0)
    """Numbers of a vector."""
    temperature: float = Field(0.07, gt=0)
    """What similarities are divided by at the start; it is learned."""
    text: Pool = "first"
    """The text's state that makes its vector: that of its first token ([CLS]), or the mean of all."""
    image: Pool = "mean"
    """The image's, likewise."""


class Contrast(Objective):
    """Cross entropy of each text's own image among those of its group, and of each image's own text."""

    rows: Rows = "example"

    def __init__(self, name: str, config: ContrastConfig) -> None:
        super().__init__(name)
        self.config = config

    def head(self) -> HeadConfig:
        return ContrastHead(width=self.config.width, temperature=self.config.temperature)

    def empty(self) -> Target:
        return Target(empty_positions(), {"image": np.zeros(0, np.int64), WEIGHT: np.zeros(0, np.float32)})

    def target(self, image: int) -> Target:
        """The target of one pair: a share of its group, so that the count is the number of groups.

        Args:
            image: a number of its image; pairs of one image are not contrasted with each other.
        """
        weight = np.full(1, 1 / self.config.group, np.float32)
        return Target(np.zeros(1, np.int64), {"image": np.full(1, image, np.int64), WEIGHT: weight})

    def reading(self, encoded: Encoded, batch: Batch) -> Encoded:
        """With the pooled unimodal states as taps of their own, [B, H]."""
        pooled = {
            "text.pooled": _pooled(encoded.taps["text.unimodal"], batch.text.packing, self.config.text),
            "image.pooled": _pooled(encoded.taps["image.unimodal"], batch.image.packing, self.config.image),
        }
        return replace(encoded, taps=encoded.taps | pooled)

    def scores(self, head: nn.Module | None, encoded: Encoded, targets: Targets) -> Tensor:
        """Text and image vectors side by side, [K, 2 D]."""
        text_KH, image_KH = (encoded.taps[f"{side}.pooled"].index_select(0, targets.positions_K) for side in _SIDES)
        assert head is not None
        return head(text_KH, image_KH)  # type: ignore[no-any-return]

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        text_GPD, image_GPD = scores_K.view(-1, self.config.group, scores_K.shape[1]).chunk(2, dim=-1)
        image_GP = targets.values["image"].view(-1, self.config.group)
        same_GPP = image_GP[:, :, None] == image_GP[:, None, :]
        own_PP = torch.eye(self.config.group, dtype=torch.bool, device=scores_K.device)
        scores_GPP = (text_GPD @ image_GPD.transpose(1, 2)).masked_fill(same_GPP & ~own_PP, float("-inf"))
        right_GP = torch.arange(self.config.group, device=scores_K.device).expand(len(scores_GPP), -1)
        both = [scores_GPP, scores_GPP.transpose(1, 2)]
        total = scores_K.new_zeros(())
        for way_GPP in both:
            total = total + F.cross_entropy(way_GPP.flatten(0, 1), right_GP.flatten(), reduction="sum")
        found = sum((way_GPP.detach().argmax(-1) == right_GP).sum() for way_GPP in both)
        metrics = {f"{self.name}_accuracy": (torch.as_tensor(found), 2.0 * right_GP.numel())}
        return total / (2 * self.config.group), metrics


def _pooled(states_NH: Tensor, packing: Packing, pool: Pool) -> Tensor:
    """One state per example, zeros where it has no token; [B, H]."""
    lengths_B = packing.lengths_B.to(states_NH.device)
    if pool == "mean":
        sums_BH = states_NH.new_zeros(len(packing), states_NH.shape[1]).index_add(0, packing.examples_N, states_NH)
        return sums_BH / lengths_B[:, None].clamp_min(1).to(states_NH.dtype)
    seen = [row for row, length in enumerate(packing.lengths) if length]
    rows = torch.tensor(seen, dtype=torch.int64, device=states_NH.device)
    first = states_NH.index_select(0, packing.starts_B1[:-1].long().index_select(0, rows))
    return states_NH.new_zeros(len(packing), states_NH.shape[1]).index_copy(0, rows, first)
