from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlp.seeds import derive, generator

_INTS = st.integers(min_value=0, max_value=2**62)


def test_the_numbers_of_a_run_never_change() -> None:
    # Golden: with other numbers here, no old run can be resumed on its curve.
    assert derive(0, "order", 1, 2) == 852456441368087581
    assert generator(7, "mask", 3).integers(0, 1000, size=3).tolist() == [171, 926, 50]


@given(_INTS, _INTS, _INTS)
def test_the_same_arguments_give_the_same_seed_of_64_bits(seed: int, first: int, second: int) -> None:
    value = derive(seed, "mask", first, second)
    assert value == derive(seed, "mask", first, second)
    assert 0 <= value < 2**64


def test_distinct_arguments_give_distinct_seeds() -> None:
    which = [
        (seed, purpose, *rest) for seed in (0, 1, 12) for purpose in ("a", "b") for rest in ((), (0,), (1, 2), (12,))
    ]
    which += [(1, "a", 2, 1), (1, "a", 0, 0), (11, "a", 2), (1, "a1", 2)]
    assert len({derive(*arguments) for arguments in which}) == len(set(which))


def test_neighbouring_generators_are_unrelated() -> None:
    draws = np.stack([generator(0, "mask", epoch, example).random(64) for epoch in (0, 1) for example in range(20)])
    correlations = np.corrcoef(draws)[~np.eye(len(draws), dtype=bool)]
    assert np.abs(correlations).max() < 0.6  # 64 numbers: one standard deviation is 0.125
    assert abs(draws.mean() - 0.5) < 0.03
