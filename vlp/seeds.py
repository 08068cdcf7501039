"""Random numbers as pure functions of (seed, what for, which one).

Nothing in vlp keeps the state of a random generator: order, masks, negatives and dropout are drawn from numbers made
here, so a run continues anywhere from its step number alone.

What is drawn now and then comes of a numpy `generator`. What is drawn for each example comes of its key of 64 bits:
`Draw` draws for one thing, `Draws` for many at once. Their numbers are those of SplitMix64 (Steele, Lea and Flood 2014,
section 4), which counts up from the key and hashes the count. A numpy generator takes 5 us to be made.

Shape suffixes: B things with a key each, N numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = (1 << 64) - 1
_UNIT = 2.0**-53
"""A number has as many bits as a float holds of the numbers from 0.5 to 1."""


def derive(seed: int, purpose: str, *which: int) -> int:
    """A 64-bit seed for one purpose (`"mask"`, `"order"`, ...) and one thing (epoch, example, ...).

    Distinct arguments give unrelated seeds: BLAKE2b over all of them.
    """
    return int.from_bytes(_digest(8, seed, purpose, which), "little")


def generator(seed: int, purpose: str, *which: int) -> np.random.Generator:
    """A numpy generator for one purpose and one thing; distinct arguments give unrelated ones, as with `derive`."""
    words: Any = _Mixed(_digest(32, seed, purpose, which))  # numpy's types know no seed sequence but its own
    return np.random.Generator(np.random.PCG64(words))


def _digest(size: int, seed: int, purpose: str, which: tuple[int, ...]) -> bytes:
    text = f"{seed}/{purpose}/" + "/".join(map(str, which))
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


class _Mixed(ISeedSequence):
    """The words that PCG64 starts from, which the hash has mixed well already.

    Numpy's own mixing takes 20 us of a generator's 25, and where images are augmented, each has a generator.
    """

    def __init__(self, words: bytes) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.frombuffer(self._words, dtype, n_words)


def derive_each(seed: int, *which: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """A 64-bit seed for each of N things, all of one purpose that has this seed of 64 bits.

    Args:
        which: numbers that tell the things apart, each array [N].
    """
    seeds_N = np.full(len(which[0]), seed, np.uint64)
    for number_N in which:
        seeds_N = _hashed((seeds_N + np.uint64(_STEP)) ^ number_N.astype(np.uint64))
    return seeds_N


def draw(seed: int, purpose: str, *which: int) -> Draw:
    """What draws for one purpose and one thing; distinct arguments give unrelated ones, as with `derive`."""
    return Draw(derive(seed, purpose, *which))


class Draw:
    """Draws for one thing, one number after the other, in plain Python."""

    __slots__ = ("_count", "key")

    def __init__(self, key: int) -> None:
        self.key = self._count = key

    def random(self) -> float:
        """Uniform in [0, 1)."""
        self._count = count = (self._count + _STEP) & _BITS
        count = ((count ^ count >> 30) * _FIRST) & _BITS
        count = ((count ^ count >> 27) * _SECOND) & _BITS
        return ((count ^ count >> 31) >> 11) * _UNIT

    def integers(self, end: int) -> int:
        """Uniform in 0 .. end - 1."""
        return int(self.random() * end)


class Draws:
    """Draws for many things at once, for each by its own key: a thing's numbers are the same in any company.

    Args:
        purpose: what `apart` has told these numbers from others by, as 64 bits.
    """

    def __init__(self, keys: Sequence[int] | NDArray[np.uint64], purpose: int = 0) -> None:
        self._things_B = np.asarray(keys, np.uint64)
        self._purpose = purpose

    def __len__(self) -> int:
        return len(self._things_B)

    def __iter__(self) -> Iterator[Draw]:
        return map(Draw, self._keys_B.tolist())

    @property
    def _keys_B(self) -> NDArray[np.uint64]:
        return _hashed(self._things_B ^ np.uint64(self._purpose)) if self._purpose else self._things_B

    def of(self, which: NDArray[np.int64]) -> Draws:
        """For some of the things, each once and ascending, so that all of them are these."""
        return self if len(which) == len(self) else Draws(self._things_B[which], self._purpose)

    def apart(self, purpose: str) -> Draws:
        """For the same things, but numbers that are unrelated to these."""
        return Draws(self._things_B, _told(self._purpose, purpose))

    def uniform(self, counts: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Uniform in [0, 1): the first numbers of each thing, so many, one thing's behind the other's, [N]."""
        counts_B = np.asarray(counts, np.int64)
        ends_B = counts_B.cumsum()
        before_B = (ends_B - counts_B).astype(np.uint64)
        count_N = (self._keys_B - before_B * _TIMES_STEP).repeat(counts_B)
        count_N += np.arange(1, len(count_N) + 1, dtype=np.uint64) * _TIMES_STEP
        draw_N: NDArray[np.float64] = (_hashed(count_N) >> _SHIFT_11) * _UNIT
        return draw_N


_told = cache(derive)
"""Purposes are few, and told again for each micro-batch."""


_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = (np.uint64(bits) for bits in (30, 27, 31, 11))
_TIMES_FIRST, _TIMES_SECOND, _TIMES_STEP = (np.uint64(factor) for factor in (_FIRST, _SECOND, _STEP))
"""Numbers of numpy's own, made once: to make them takes as long as to use them."""


def _hashed(count_N: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 bits for each count; `Draw` does the same."""
    count_N = count_N ^ count_N >> _SHIFT_30
    count_N *= _TIMES_FIRST
    count_N ^= count_N >> _SHIFT_27
    count_N *= _TIMES_SECOND
    count_N ^= count_N >> _SHIFT_31
    return count_N
