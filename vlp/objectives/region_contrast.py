"""Region contrast: tell the feature of a hidden region from those of other regions. Source: Lu et al. 2019
(arXiv 1908.02265), in their code (noise-contrastive estimation, Gutmann and Hyvarinen 2010).

Shape suffixes: K hidden regions, Q negatives of a region, D feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.objectives.objective import precise


def contrast(scores_KD: Tensor, features_KD: Tensor, negatives_KQD: Tensor) -> Tensor:
    """Cross entropy of the true feature among the negatives, by their dot products with the guessed one, [K].

    Args:
        scores_KD: the guessed features.
        features_KD: the true ones.
        negatives_KQD: features of other regions.
    """
    candidates_KQD = torch.cat([features_KD[:, None], negatives_KQD], dim=1)
    products_KQ = torch.einsum("kd,kqd->kq", precise(scores_KD), candidates_KQD)
    first_K = torch.zeros(len(products_KQ), dtype=torch.int64, device=products_KQ.device)
    return F.cross_entropy(products_KQ, first_K, reduction="none")
