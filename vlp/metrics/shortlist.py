"""A cheap score chooses, a dear one ranks what was chosen.

Shape suffixes: Q queries, C candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best(scores_QC: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """True at each query's `count` best candidates, [Q, C]."""
    chosen_QC = np.zeros(scores_QC.shape, np.bool_)
    count = min(count, scores_QC.shape[1])
    rows_QK = np.argpartition(-scores_QC, count - 1, axis=1)[:, :count]
    np.put_along_axis(chosen_QC, rows_QK, True, axis=1)
    return chosen_QC


def reranked(
    cheap_QC: NDArray[np.float32], dear_QC: NDArray[np.float32], chosen_QC: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Scores that rank the chosen candidates by the dear score, above all others, which keep the cheap one's order."""
    low = np.float32(np.min(dear_QC, initial=0, where=chosen_QC))
    lift = np.float32(np.max(cheap_QC, initial=0) + 1) - low
    return np.where(chosen_QC, dear_QC + lift, cheap_QC).astype(np.float32)
