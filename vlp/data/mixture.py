"""Which dataset stands at each place of an endless draw, by weight: pure, exact at every length, no walking."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlp.errors import ConfigError
from vlp.seeds import generator

_BITS = 24
"""Shares are whole numbers of 2**-24, so that counts stay exact in int64 up to 2**39 (550 billion) draws."""


class Mixture:
    """Datasets by weight, spread evenly: each comes as often as its share of the draws, give or take one per dataset.

    The first dataset is split from the rest by rounding a line of its slope, the second from what is left, and so on.
    Against independent draws (a multinomial) this needs no state to be sought in, costs O(datasets) at any position,
    and each batch holds the proportions that the weights ask for. Seed and group shift the lines' phases.

    Args:
        weights: one positive number per dataset; only their proportions matter.
        seed, group: what the phases are drawn by.
    Raises:
        ConfigError: no weight, or one that is not a positive number.
    """

    def __init__(self, weights: Sequence[float], *, seed: int, group: int) -> None:
        if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ConfigError(f"data.train: weights {list(weights)} must be positive numbers, one per dataset")
        phases = generator(seed, "mixture", group).integers(0, 1 << _BITS, len(weights))
        self._lines: list[tuple[int, int]] = []
        for number in range(len(weights)):
            share = weights[number] / sum(weights[number:])
            slope = 1 << _BITS if number == len(weights) - 1 else max(1, round(share * (1 << _BITS)))
            self._lines.append((slope, int(phases[number])))

    def counts(self, draws: int) -> list[int]:
        """How often each dataset came in the first `draws` draws."""
        counts = []
        for slope, phase in self._lines:
            count = (draws * slope + phase) >> _BITS
            counts.append(count)
            draws -= count
        return counts

    def datasets(self, first: int, draws: int) -> NDArray[np.int64]:
        """The dataset of each of the draws `first` to `first + draws - 1`."""
        result = np.zeros(draws, np.int64)
        left = np.arange(draws)
        before = np.arange(first, first + draws, dtype=np.int64)
        for number, (slope, phase) in enumerate(self._lines):
            count = (before * slope + phase) >> _BITS
            taken = ((before + 1) * slope + phase) >> _BITS > count
            result[left[taken]] = number
            left, before = left[~taken], (before - count)[~taken]
        return result


def by_temperature(examples: Sequence[int], temperature: float) -> list[float]:
    """A weight per dataset: examples ** (1 / temperature). Source: Devlin 2018, multilingual BERT (exponent 0.7).

    Args:
        examples: of each dataset, at least 1.
        temperature: 1 draws by size, infinity draws all datasets alike.
    """
    return [count ** (1 / temperature) for count in examples]
