"""How sure a measured number is: percentile bootstrap intervals. Source: Efron and Tibshirani 1993, chapter 13.

What belongs together (the questions of one image) is drawn together: answers on one image are not independent.

Shape suffixes: E values, G groups, S draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlp.seeds import generator

Statistic = Literal["mean", "median"]
DRAWS = 1000
"""Enough for two digits of a 95 % interval (Efron and Tibshirani 1993, 13.3)."""
_AT_ONCE = 50


def interval(
    values_E: Sequence[float] | NDArray[Any],
    groups_E: Sequence[object],
    *,
    statistic: Statistic = "mean",
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Lower and upper end of the interval of a mean or a median.

    For two models on the same examples, give the differences of their scores: the interval is then that of a paired
    comparison.

    Args:
        groups_E: what each value belongs to; whole groups are drawn, with replacement.
        level: how much of the draws' results lies within.
    Returns:
        (nan, nan) without values.
    """
    values_E = np.asarray(values_E, np.float64)
    if not len(values_E):
        return float("nan"), float("nan")
    numbers: dict[object, int] = {}
    group_E = np.array([numbers.setdefault(group, len(numbers)) for group in groups_E], np.int64)
    order = np.argsort(values_E, kind="stable")
    values_E, group_E = values_E[order], group_E[order]
    rng = generator(seed, "bootstrap")
    found: list[NDArray[np.float64]] = []
    for start in range(0, draws, _AT_ONCE):
        size = min(_AT_ONCE, draws - start)
        times_SG = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size)
        found.append(_statistics(values_E, group_E, times_SG, statistic))
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _statistics(
    values_E: NDArray[np.float64], group_E: NDArray[np.int64], times_SG: NDArray[np.int64], statistic: Statistic
) -> NDArray[np.float64]:
    """The statistic of each draw; values are sorted."""
    if statistic == "mean":
        groups = times_SG.shape[1]
        sums_G = np.bincount(group_E, values_E, groups)
        counts_G = np.bincount(group_E, minlength=groups)
        return np.asarray((times_SG @ sums_G) / (times_SG @ counts_G))
    drawn_SE = np.cumsum(times_SG[:, group_E], axis=1)
    total_S = drawn_SE[:, -1:]
    # The value (or the two values) in the middle of the drawn ones.
    low = (drawn_SE < (total_S + 1) // 2).sum(axis=1)
    high = (drawn_SE < total_S // 2 + 1).sum(axis=1)
    return np.asarray((values_E[low] + values_E[high]) / 2)
