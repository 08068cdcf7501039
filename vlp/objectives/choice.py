"""Choosing at random: of things that each have a number, drawn uniformly from 0 to 1, those whose number is small.

Shape suffixes: N things, B examples that have them one after the other, K things that are chosen.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)
NEVER = np.inf
"""The number of a thing that is not to be chosen."""


def choose_each(
    draw_N: NDArray[np.float64], starts_B1: NDArray[np.int64], probability: float, at_least_one: bool = True
) -> NDArray[np.bool_]:
    """True at those whose number is below the probability, [N].

    Args:
        starts_B1: where each example's things begin, and the end.
        at_least_one: of an example that has none, the one with the least number is taken.
    """
    chosen_N = draw_N < probability
    if at_least_one:
        starts_K = starts_B1.searchsorted(chosen_N.nonzero()[0], side="right") - 1
        bare_B = counts_of(starts_B1) > 0
        bare_B[starts_K] = False
        for example in bare_B.nonzero()[0].tolist():
            first, end = starts_B1[example], starts_B1[example + 1]
            least = first + draw_N[first:end].argmin()
            chosen_N[least] = draw_N[least] < NEVER
    return chosen_N


def counts_of(starts_B1: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many things each example has, [B]: the reverse of `vlp.data.packing.starts_of`."""
    return starts_B1[1:] - starts_B1[:-1]


def places_in_each(
    chosen_N: NDArray[np.bool_], starts_B1: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places of those that are chosen, counted within each example, ascending, [K]; and where each example's begin,
    and the end, [B + 1]."""
    places_K = chosen_N.nonzero()[0]
    bounds_B1 = places_K.searchsorted(starts_B1)
    places_K -= starts_B1[:-1].repeat(counts_of(bounds_B1))
    return places_K, bounds_B1


def parts(array_N: NDArray[Number], starts_B1: NDArray[np.int64]) -> list[NDArray[Number]]:
    """Each example's part of an array; views."""
    return [array_N[first:end] for first, end in pairwise(starts_B1.tolist())]
