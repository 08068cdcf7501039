"""Word-region alignment: how far the words' states must be moved to become the regions' states. Sources: Chen et al.
2020 (arXiv 1909.11740), section 3.1 (WRA); the inexact proximal point method is of Xie et al. 2018 (arXiv 1802.04307).

Everything is in fp32, whatever the model's precision: the method multiplies small numbers over and over.

Shape suffixes: B examples, T longest text, R most regions.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST_NORM = 1e-5
"""A vector shorter than this is not scaled up to length 1."""


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
