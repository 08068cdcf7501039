"""Hard negatives for matching: an image is paired with a text that is like its own, a text with an image that is like
its own. Source: Li et al. 2021 (arXiv 2107.07651), section 3.2.

Shape suffixes: G pairs of the global batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

NONE = -1
"""Stands where all pairs are of one image, so there is no negative."""


def hard_negatives(scores_GG: Tensor, images_G: Tensor, draws_G2: Tensor) -> tuple[Tensor, Tensor]:
    """For each pair the pair whose image its text gets, and the pair whose text its image gets; int64 [G] each.

    A negative is drawn by the softmax of the scores, over pairs of other images.

    Args:
        scores_GG: of each text (row) and image (column).
        images_G: numbers of the images.
        draws_G2: uniform in [0, 1): what decides, so that the choice is a function of its arguments.
    """
    other_GG = images_G[:, None] != images_G[None, :]
    return (
        _drawn(scores_GG, other_GG, draws_G2[:, 0]),
        _drawn(scores_GG.T, other_GG, draws_G2[:, 1]),
    )


def _drawn(scores_GG: Tensor, allowed_GG: Tensor, draws_G: Tensor) -> Tensor:
    if not len(draws_G):
        return torch.zeros(0, dtype=torch.int64, device=scores_GG.device)
    shares_GG = scores_GG.double().masked_fill(~allowed_GG, float("-inf")).softmax(1)
    ends_GG = shares_GG.nan_to_num(0).cumsum(1)
    total_G1 = ends_GG[:, -1:]
    # The first whose end lies above the draw: one that has a share.
    found_G1 = torch.searchsorted(ends_GG, draws_G[:, None].double() * total_G1, right=True)
    return torch.where(total_G1 > 0, found_G1.clamp(max=len(draws_G) - 1), NONE)[:, 0]
