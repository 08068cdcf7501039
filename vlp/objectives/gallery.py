"""Texts and images told apart among all of a global batch, both ways: the formulas of image-text contrast.

A score is a text's vector, which the temperature has divided, times an image's. Others of a pair's own image are no
negatives, and are left out.

Shape suffixes: K pairs that are judged, G pairs that they are told from, D width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1024
"""Rows of scores that are in memory at once where all pairs meet all pairs."""


@dataclass(frozen=True)
class Gallery:
    """What pairs are told from."""

    text_GD: Tensor
    image_GD: Tensor
    images_G: Tensor
    """int64 numbers of the images: pairs of one image have the same."""

    def __len__(self) -> int:
        return len(self.images_G)


def scores(query_KD: Tensor, keys_GD: Tensor, images_K: Tensor, images_G: Tensor, rows_K: Tensor) -> Tensor:
    """Scores of the queries' keys, [K, G]; -inf for those of a query's image that are not its own.

    Args:
        rows_K: int64, the row of each query's own key.
    """
    same_KG = images_K[:, None] == images_G[None, :]
    same_KG = same_KG.scatter(1, rows_K[:, None], False)
    return (query_KD @ keys_GD.T).masked_fill(same_KG, float("-inf"))


def soft_cross_entropy(scores_KG: Tensor, teacher_KG: Tensor, rows_K: Tensor, alpha: Tensor | float) -> Tensor:
    """Cross entropy with targets that are in part a teacher's, [K]. Source: Li et al. 2021 (arXiv 2107.07651), eq. 6.

    Args:
        teacher_KG: the scores that the teacher gives.
        alpha: the teacher's share of the targets; the rest is the query's own key's.
    """
    target_KG = alpha * teacher_KG.softmax(1)
    one_K1 = torch.ones_like(rows_K, dtype=target_KG.dtype)[:, None]
    target_KG = target_KG.scatter_add(1, rows_K[:, None], (1 - alpha) * one_K1)
    logs_KG = scores_KG.log_softmax(1)
    return -(target_KG * logs_KG.masked_fill(scores_KG.isinf(), 0)).sum(1)


def both_ways(text_KD: Tensor, image_KD: Tensor, gallery: Gallery, rows_K: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the two ways of the cross entropy of each pair, [K], and how often its own key scores best, [K]."""
    images_K = gallery.images_G[rows_K]
    loss_K, right_K = text_KD.new_zeros(len(rows_K)), text_KD.new_zeros(len(rows_K))
    for query_KD, keys_GD in ((text_KD, gallery.image_GD), (image_KD, gallery.text_GD)):
        scores_KG = scores(query_KD, keys_GD, images_K, gallery.images_G, rows_K)
        loss_K = loss_K + F.cross_entropy(scores_KG, rows_K, reduction="none") / 2
        right_K = right_K + best(scores_KG, rows_K)
    return loss_K, right_K


def best(scores_KG: Tensor, rows_K: Tensor) -> Tensor:
    """1 where a query's own key has the highest score, [K]."""
    if not len(rows_K):
        return scores_KG.new_zeros(0)
    return (scores_KG.detach().argmax(1) == rows_K).to(scores_KG.dtype)


@dataclass(frozen=True)
class Pulls:
    """Losses of all pairs of a global batch, and what the sum of them all asks of each vector."""

    loss_G: Tensor
    right_G: Tensor
    """How often, of two ways, a pair's own key scores best."""
    text_GD: Tensor
    """The sum's gradient for each text's vector."""
    image_GD: Tensor


def pulls(gallery: Gallery) -> Pulls:
    """All pairs told from all pairs, a chunk of rows at a time.

    A vector is a query once and a key of all others. With the gradient for each vector known, a backward through any
    part of the pairs gives that part of the whole gradient. Source: Gao et al. 2021 (arXiv 2101.06983), section 3.
    """
    text_GD, image_GD = (x.detach().clone().requires_grad_() for x in (gallery.text_GD, gallery.image_GD))
    leaves = Gallery(text_GD, image_GD, gallery.images_G)
    loss_G, right_G = text_GD.new_zeros(len(gallery)), text_GD.new_zeros(len(gallery))
    pull_text_GD, pull_image_GD = torch.zeros_like(text_GD), torch.zeros_like(image_GD)
    for start in range(0, len(gallery), CHUNK):
        rows_K = torch.arange(start, min(start + CHUNK, len(gallery)), device=text_GD.device)
        with torch.enable_grad():
            loss_K, right_K = both_ways(text_GD[rows_K], image_GD[rows_K], leaves, rows_K)
            of_text_GD, of_image_GD = torch.autograd.grad(loss_K.sum(), (text_GD, image_GD))
        loss_G[rows_K], right_G[rows_K] = loss_K.detach(), right_K
        pull_text_GD += of_text_GD
        pull_image_GD += of_image_GD
    return Pulls(loss_G, right_G, pull_text_GD, pull_image_GD)
