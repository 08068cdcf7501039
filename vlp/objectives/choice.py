"""Choosing at random: of things that each have a number, drawn uniformly from 0 to 1, those whose number is small.

Shape suffixes: N things, B examples that have them one after the other, K things that are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

NEVER = np.inf
"""The number of a thing that is not to be chosen, by `choose_each`."""


def choose(draw_N: NDArray[np.float64], probability: float, at_least_one: bool = True) -> NDArray[np.int64]:
    """The places of those whose number is below the probability, ascending.

    Args:
        at_least_one: where there is none, the one with the least number is taken.
    """
    chosen_K = (draw_N < probability).nonzero()[0]
    if at_least_one and not len(chosen_K) and len(draw_N):
        return np.array([draw_N.argmin()])
    return chosen_K


def choose_each(
    draw_N: NDArray[np.float64], starts_B1: NDArray[np.int64], probability: float, at_least_one: bool = True
) -> NDArray[np.bool_]:
    """As `choose` does for each example, but true at those that are chosen, [N].

    Args:
        starts_B1: where each example's things begin, and the end.
    """
    chosen_N = draw_N < probability
    if at_least_one:
        starts_K = starts_B1.searchsorted(chosen_N.nonzero()[0], side="right") - 1
        bare_B = np.diff(starts_B1) > 0
        bare_B[starts_K] = False
        for example in bare_B.nonzero()[0].tolist():
            first, end = starts_B1[example], starts_B1[example + 1]
            least = first + draw_N[first:end].argmin()
            chosen_N[least] = draw_N[least] < NEVER
    return chosen_N


def starts_of(counts: Sequence[int]) -> NDArray[np.int64]:
    """Where each example's things begin, and the end, [B + 1]."""
    return np.array([0, *counts], np.int64).cumsum()


def places_in_each(chosen_N: NDArray[np.bool_], starts_B1: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The places of those that are chosen, counted within each example, ascending."""
    places_K = chosen_N.nonzero()[0]
    bounds_B1 = places_K.searchsorted(starts_B1)
    places_K -= starts_B1[:-1].repeat(np.diff(bounds_B1))
    return parts(places_K, bounds_B1)


def parts(array_N: NDArray[np.int64], starts_B1: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Each example's part of an array; views."""
    return [array_N[first:end] for first, end in pairwise(starts_B1.tolist())]
