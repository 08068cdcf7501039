"""Random numbers as pure functions of (seed, what for, which one).

Nothing in vlp keeps the state of a random generator: order, masks, negatives and dropout are drawn from generators
made here, so a run continues anywhere from its step number alone.
"""

import hashlib

import numpy as np


def derive(seed: int, purpose: str, *which: int) -> int:
    """A 64-bit seed for one purpose (`"mask"`, `"order"`, ...) and one thing (epoch, example, ...).

    Distinct arguments give unrelated seeds: BLAKE2b over all of them.
    """
    text = f"{seed}/{purpose}/" + "/".join(map(str, which))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, purpose: str, *which: int) -> np.random.Generator:
    """A numpy generator seeded by `derive`."""
    return np.random.Generator(np.random.PCG64(derive(seed, purpose, *which)))
