"""Hard negatives for matching: an image is paired with a text that is like its own, a text with an image that is like
its own. Source: Li et al. 2021 (arXiv 2107.07651), section 3.2.

An image is given to `MOST` texts at most, else one that is like many texts would be drawn by all of them, and the
micro-batch that holds it could outgrow what was planned.

Shape suffixes: G pairs of the global batch, K of them that still draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

NONE = -1
"""Stands where no pair of another image is left, so there is no negative."""
MOST = 2
"""Texts that are given the same image at most; one on average."""


def hard_negatives(scores_GG: Tensor, images_G: Tensor, draws_G2: Tensor) -> tuple[Tensor, Tensor]:
    """For each pair the pair whose image its text gets, and the pair whose text its image gets; int64 [G] each.

    A negative is drawn by the softmax of the scores, over pairs of other images; an image that `MOST` texts have drawn,
    in the order of the batch, is left out, and who drew it later draws again among the rest.

    Args:
        scores_GG: of each text (row) and image (column).
        images_G: numbers of the images.
        draws_G2: uniform in [0, 1): what decides, so that the choice is a function of its arguments.
    """
    other_GG = images_G[:, None] != images_G[None, :]
    return (
        _rationed(scores_GG, other_GG, draws_G2[:, 0]),
        _drawn(scores_GG.T, other_GG, draws_G2[:, 1]),
    )


def _rationed(scores_GG: Tensor, allowed_GG: Tensor, draws_G: Tensor) -> Tensor:
    """As `_drawn`, but no pair is drawn by more than `MOST` others."""
    found_G = torch.full_like(draws_G, NONE, dtype=torch.int64)
    room_G = torch.full_like(found_G, MOST)
    rows_K = torch.arange(len(found_G), device=found_G.device)
    while len(rows_K):
        drawn_K = _drawn(scores_GG[rows_K], allowed_GG[rows_K] & (room_G > 0), draws_G[rows_K])
        rows_K, drawn_K = rows_K[drawn_K != NONE], drawn_K[drawn_K != NONE]
        given_K = _earlier_alike(drawn_K) < room_G[drawn_K]
        found_G[rows_K[given_K]] = drawn_K[given_K]
        room_G -= torch.bincount(drawn_K[given_K], minlength=len(room_G))
        rows_K = rows_K[~given_K]
    return found_G


def _earlier_alike(values_K: Tensor) -> Tensor:
    """For each value how many before it are the same."""
    sorted_K, order_K = values_K.sort(stable=True)
    within_K = torch.arange(len(values_K), device=values_K.device) - torch.searchsorted(sorted_K, sorted_K)
    return torch.empty_like(within_K).index_copy(0, order_K, within_K)


def _drawn(scores_KG: Tensor, allowed_KG: Tensor, draws_K: Tensor) -> Tensor:
    """One of those allowed to each row, by the softmax of its scores; int64 [K]."""
    if not len(draws_K):
        return torch.zeros(0, dtype=torch.int64, device=scores_KG.device)
    shares_KG = scores_KG.double().masked_fill(~allowed_KG, float("-inf")).softmax(1)
    ends_KG = shares_KG.nan_to_num(0).cumsum(1)
    total_K1 = ends_KG[:, -1:]
    # The first whose end lies above the draw: one that has a share.
    found_K1 = torch.searchsorted(ends_KG, draws_K[:, None].double() * total_K1, right=True)
    return torch.where(total_K1 > 0, found_K1.clamp(max=scores_KG.shape[1] - 1), NONE)[:, 0]
