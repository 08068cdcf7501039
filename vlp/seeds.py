"""Random numbers as pure functions of (seed, what for, which one).

Nothing in vlp keeps the state of a random generator: order, masks, negatives and dropout are drawn from generators
made here, so a run continues anywhere from its step number alone.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray


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

    Numpy's own mixing takes 20 us of a generator's 25, and a step makes two generators per example.
    """

    def __init__(self, words: bytes) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.frombuffer(self._words, dtype, n_words)
