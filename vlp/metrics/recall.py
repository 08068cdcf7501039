"""Recall of retrieval."""

from __future__ import annotations

import torch
from torch import Tensor

from vlp.errors import DataError


def ranks_of_matches(scores_QC: Tensor, matches_QC: Tensor) -> Tensor:
    """Rank of each query's best match, 1 for the first place, [Q].

    Candidates of the same score as the best match count as before it, so that a constant score earns nothing; nor does
    one that is not a number.

    Args:
        scores_QC: of each candidate for each query, [Q, C].
        matches_QC: True where they belong together, [Q, C].
    Raises:
        DataError: a query has no match, so its rank is undefined.
    """
    if not bool(matches_QC.any(dim=1).all()):
        raise DataError(
            f"query {int((~matches_QC.any(dim=1)).nonzero()[0])} has no match among the candidates; recall is undefined"
        )
    best_Q1 = scores_QC.masked_fill(~matches_QC, float("-inf")).max(dim=1, keepdim=True).values
    return 1 + (~(scores_QC < best_Q1) & ~matches_QC).sum(dim=1)


def recall_at_k(scores_QC: Tensor, matches_QC: Tensor, k: int) -> float:
    """Share of queries whose top k holds a match. Source: Karpathy and Fei-Fei 2015, section 4.2."""
    return float((ranks_of_matches(scores_QC, matches_QC) <= k).to(torch.float64).mean())


def median_rank(ranks_Q: Tensor) -> float:
    """The rank in the middle; between two of them, their mean."""
    return float(ranks_Q.to(torch.float64).quantile(0.5))
