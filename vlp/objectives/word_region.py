"""Word-region alignment: how far the words' states must be moved to become the regions' states. Sources: Chen et al.
2020 (arXiv 1909.11740), section 3.1 (WRA); over pixels Kim et al. 2021 (arXiv 2102.03334), section 3.2; the inexact
proximal point method is of Xie et al. 2018 (arXiv 1802.04307).

Everything is in fp32, whatever the model's precision: the method multiplies small numbers over and over.

Shape suffixes: N text and M image tokens of a batch; B examples, T longest text, R most regions; K examples that are
judged; H width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from vlp.errors import ConfigError
from vlp.models.heads import HeadConfig
from vlp.objectives.objective import Facts, Hidden, SelfSupervised, SelfSupervisedConfig, empty_positions
from vlp.seeds import Draw
from vlp.types import Batch, Encoded, FramedBatch, Packing, Rows, Stream, Target, Targets

LONGEST_NORM = 1e-5
"""A vector shorter than this is not scaled up to length 1."""


class AlignmentConfig(SelfSupervisedConfig):
    """Settings of word-region alignment. With `combine: one` it goes `along_with` a matching objective,
    whose mismatched pairs it draws apart."""

    kind: Literal["word_region_alignment"] = "word_region_alignment"
    beta: float = Field(0.5, gt=0)
    """Weight of staying near the last step's plan."""
    steps: int = Field(50, ge=1)
    """Steps of the method."""
    inner: int = Field(1, ge=1)
    """Scalings inside each step."""
    specials: bool = True
    """Whether a text's first and last token ([CLS], [SEP]) count as words, as in the code of Chen et al.; in that of
    Kim et al. they do not."""


class Alignment(SelfSupervised):
    """The least cost of moving the words onto the regions: drawn down in matched pairs, up in mismatched ones.

    The mean over pairs of the distance, with a minus in mismatched ones; metrics are the mean distances of both. It has
    no head: it judges the states themselves. The whole image (`image.source.whole`) and the rows before and after an
    image's tokens are no regions.
    """

    rows: Rows = "example"
    pairs = "all"

    def __init__(self, name: str, config: AlignmentConfig, facts: Facts) -> None:
        super().__init__(name)
        self.config = config
        text, image = (facts.model.final[stream].width for stream in ("text", "image"))
        if text != image:
            raise ConfigError(
                f"task.objectives.{name}: compares words with regions, but their states end {text} and {image} wide; "
                "remove it, or take a model whose streams have one width"
            )

    def head(self) -> HeadConfig | None:
        return None

    def empty(self) -> Target:
        return Target(empty_positions(), {"matched": np.zeros(0, np.int64), "whole": np.zeros(0, np.int64)})

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        example = hidden.example
        whole = int(example.regions is not None and example.regions.whole)
        if example.image is None or len(example.image) == whole:
            return self.empty()
        return Target(
            np.zeros(1, np.int64), {"matched": np.array([example.matched], np.int64), "whole": np.array([whole])}
        )

    def reads(self, batch: Batch) -> dict[Stream, Tensor | None]:
        """Every token."""
        return {"text": None, "image": None}

    def reading(self, encoded: Encoded, batch: Batch) -> Encoded:
        """With the distance of each judged example as a tap of its own, [K]."""
        targets = batch.targets[self.name]
        text_KTH, text_KT = _laid_out(encoded.text_NH, batch.text.packing, targets.positions_K)
        image_KRH, image_KR = _laid_out(encoded.image_MH, batch.image.packing, targets.positions_K)
        if not self.config.specials:
            last_K1 = batch.text.packing.lengths_B.to(text_KT.device)[targets.positions_K, None] - 1
            places_T = torch.arange(text_KT.shape[1], device=text_KT.device)
            text_KT = text_KT & (places_T > 0) & (places_T < last_K1)
        image_KR = image_KR & ~_no_regions(batch, targets)
        cost_KTR = alignment_costs(text_KTH, image_KRH, text_KT, image_KR)
        settings = self.config
        plan_KRT = transport_plans(
            cost_KTR, text_KT, image_KR, beta=settings.beta, steps=settings.steps, inner=settings.inner
        )
        return replace(encoded, taps=encoded.taps | {self.name: alignment_distances(cost_KTR, plan_KRT)})

    def scores(self, head: nn.Module | None, encoded: Encoded, targets: Targets) -> Tensor:
        """The distances, [K]."""
        return encoded.taps[self.name]

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        matched_K = targets.values["matched"] == 1
        metrics = {
            f"{self.name}_distance_{kind}": (scores_K.detach().masked_fill(~which_K, 0).sum(), which_K.sum())
            for kind, which_K in (("matched", matched_K), ("mismatched", ~matched_K))
        }
        return alignment_loss(scores_K, matched_K), metrics


def _laid_out(states_NH: Tensor, packing: Packing, positions_K: Tensor) -> tuple[Tensor, Tensor]:
    """The states of some examples in a padded layout, [K, longest, H], and where there is one, [K, longest]."""
    examples, longest = len(packing), packing.longest
    rows_BLH = states_NH.new_zeros(examples * longest, states_NH.shape[1]).index_copy(0, packing.rows_N, states_NH)
    places_L = torch.arange(longest, device=states_NH.device)
    valid_BL = places_L < packing.lengths_B.to(states_NH.device)[:, None]
    rows_BLH = rows_BLH.view(examples, longest, states_NH.shape[1])
    return rows_BLH.index_select(0, positions_K), valid_BL.index_select(0, positions_K)


def _no_regions(batch: Batch, targets: Targets) -> Tensor:
    """True where an image token of a judged example shows no region: the whole image, rows before and after, [K, R]."""
    image, packing = batch.image, batch.image.packing
    examples_K, device = targets.positions_K, targets.positions_K.device
    before_K = targets.values["whole"]
    after_K = torch.zeros_like(before_K)
    if isinstance(image, FramedBatch):
        before_K = before_K + torch.isin(examples_K, image.first_P).long()
        after_K = torch.isin(examples_K, image.last_P).long()
    ends_K = packing.lengths_B.to(device)[examples_K] - after_K
    places_R = torch.arange(packing.longest, device=device)
    return (places_R < before_K[:, None]) | (places_R >= ends_K[:, None])


def alignment_costs(text_BTH: Tensor, image_BRH: Tensor, text_BT: Tensor, image_BR: Tensor) -> Tensor:
    """1 minus the cosine of each word and region, [B, T, R]; 0 where either is padding.

    Args:
        text_BTH, image_BRH: states in a padded layout.
        text_BT, image_BR: True where there is a word, a region.
    """
    text_BTH, image_BRH = (
        x.float() / x.float().norm(dim=-1, keepdim=True).clamp_min(LONGEST_NORM) for x in (text_BTH, image_BRH)
    )
    cost_BTR = 1 - text_BTH @ image_BRH.transpose(1, 2)
    return cost_BTR.masked_fill(~(text_BT[:, :, None] & image_BR[:, None, :]), 0)


@torch.no_grad()
def transport_plans(
    cost_BTR: Tensor, text_BT: Tensor, image_BR: Tensor, *, beta: float = 0.5, steps: int = 50, inner: int = 1
) -> Tensor:
    """How much of each word goes to each region, [B, R, T], all words weighing the same, and so all regions.

    Args:
        beta: weight of staying near the last step's plan.
        steps, inner: steps of the method, and of the scaling inside each.
    """
    # Where one side is empty, nothing is moved.
    text_BT, image_BR = text_BT & image_BR.any(1, keepdim=True), image_BR & text_BT.any(1, keepdim=True)
    cost_BRT = cost_BTR.float().transpose(1, 2)
    pair_BRT = image_BR[:, :, None] & text_BT[:, None, :]
    words_B1, regions_B1 = text_BT.sum(1, keepdim=True).float(), image_BR.sum(1, keepdim=True).float()
    kernel_BRT = torch.exp(-cost_BRT / beta).masked_fill(~pair_BRT, 0)
    plan_BRT = pair_BRT.float()
    sigma_BT = text_BT.float() / words_B1.clamp_min(1)
    for _ in range(steps):
        step_BRT = kernel_BRT * plan_BRT
        for _ in range(inner):
            received_BR = torch.einsum("brt,bt->br", step_BRT, sigma_BT)
            delta_BR = _inverse(regions_B1 * received_BR, image_BR)
            sent_BT = torch.einsum("brt,br->bt", step_BRT, delta_BR)
            sigma_BT = _inverse(words_B1 * sent_BT, text_BT)
        plan_BRT = delta_BR[:, :, None] * step_BRT * sigma_BT[:, None, :]
    return plan_BRT


def _inverse(x: Tensor, valid: Tensor) -> Tensor:
    """1 / x where valid, else 0."""
    return torch.where(valid, 1 / x.masked_fill(~valid, 1), 0)


def alignment_distances(cost_BTR: Tensor, plan_BRT: Tensor) -> Tensor:
    """What the plans cost, [B]; the gradient runs through the costs only."""
    return torch.einsum("btr,brt->b", cost_BTR, plan_BRT.detach())


def alignment_loss(distances_B: Tensor, matched_B: Tensor) -> Tensor:
    """Sum of the distances of matched pairs less that of mismatched ones; to be divided by the number of pairs."""
    return torch.where(matched_B, distances_B, -distances_B).sum()
