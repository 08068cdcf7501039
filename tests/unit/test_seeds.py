from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.task_making import within_3_sigma
from vlp.seeds import Draw, Draws, derive, derive_each, draw, generator

_INTS = st.integers(min_value=0, max_value=2**62)


def test_the_numbers_of_a_run_never_change() -> None:
    # Golden: with other numbers here, no old run can be resumed on its curve.
    assert derive(0, "order", 1, 2) == 852456441368087581
    assert generator(7, "mask", 3).integers(0, 1000, size=3).tolist() == [171, 926, 50]
    assert draw(0, "example", 1, 2).key == derive(0, "example", 1, 2)
    # SplitMix64 of these keys, as its authors' code gives it (of 64 bits, the upper 53).
    assert [number * 2**53 for number in Draws([0, 1234567]).uniform([2, 1])] == [
        0xE220A8397B1DCDAF >> 11,
        0x6E789E6AA1B965F4 >> 11,
        6457827717110365317 >> 11,
    ]


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


def test_seeds_of_many_things_are_each_thing_s_own() -> None:
    assert derive_each(7, np.array([2]), np.array([3])).tolist() == [7104948020671887413]  # never changes, as above
    shard, place = np.repeat([0, 7, 2**40], 50), np.tile(np.arange(100, 150), 3)
    seeds = derive_each(2**64 - 1, shard, place)
    for row in (0, 60, 149):
        assert derive_each(2**64 - 1, shard[[row]], place[[row]]).item() == seeds[row]
    other_seed, turned = derive_each(0, shard, place), derive_each(2**64 - 1, place, shard)
    assert len({*seeds.tolist(), *other_seed.tolist(), *turned.tolist()}) == 3 * 150
    assert len(derive_each(0, np.zeros(0, np.int64))) == 0


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 5)), min_size=1, max_size=9))
def test_a_thing_draws_the_same_alone_and_in_any_company(things: list[tuple[int, int]]) -> None:
    keys, counts = [key for key, _ in things], [count for _, count in things]
    together = Draws(keys).uniform(counts).tolist()
    one_by_one: list[float] = []
    for rng, count in zip(Draws(keys), counts, strict=True):
        one_by_one += [rng.random() for _ in range(count)]
    assert together == one_by_one
    some = Draws(keys).of(np.array([0, len(keys) - 1])).apart("fate").uniform([2, 2]).tolist()
    assert some == [*Draws(keys[:1]).apart("fate").uniform([2]), *Draws(keys[-1:]).apart("fate").uniform([2])]
    assert Draws(keys).apart("fate").of(np.array([0, len(keys) - 1])).uniform([2, 2]).tolist() == some


def test_draws_are_uniform_and_unrelated_between_things_purposes_and_numbers() -> None:
    things, numbers = 2000, 64
    draws = Draws([derive(0, "example", 0, number) for number in range(things)])
    one, other = (draws.apart(purpose).uniform([numbers] * things).reshape(things, -1) for purpose in ("a", "b"))
    plain = draws.uniform([numbers] * things).reshape(things, -1)
    nested = draws.apart("a").apart("b").uniform([numbers] * things).reshape(things, -1)
    for drawn in (one, other, plain, nested):
        assert 0 <= drawn.min() < drawn.max() < 1
        for tenth in np.bincount((drawn * 10).astype(int).ravel(), minlength=10):
            assert within_3_sigma(int(tenth), drawn.size, 0.1)
        assert (np.abs(drawn.mean(0) - 0.5) < 4.5 * (1 / 12 / things) ** 0.5).all()  # whichever number it is
    # Of 512,000 numbers of 53 bits no two are one: no thing's or purpose's are another's from a later one on.
    assert len(np.unique(np.concatenate([one, other, plain, nested]))) == 4 * plain.size
    high = [drawn > 0.5 for drawn in (one, other, plain)]
    pairs = [
        (high[0], high[1]),  # of two purposes
        (high[0], high[2]),
        (high[0][:, 1:], high[0][:, :-1]),  # of a thing's neighbouring numbers
        (high[0][1:], high[0][:-1]),  # of neighbouring things
    ]
    for left, right in pairs:
        assert within_3_sigma(int((left == right).sum()), left.size, 0.5)


def test_keys_that_count_up_draw_unrelated_numbers_too() -> None:
    draws = Draws(range(100_000)).apart("mask").uniform([2] * 100_000).reshape(-1, 2)
    both = (draws < 0.15).all(1)
    assert within_3_sigma(int((draws < 0.15).sum()), 200_000, 0.15)
    assert within_3_sigma(int(both.sum()), 100_000, 0.15**2)
    assert within_3_sigma(int(((draws[1:, 0] < 0.15) & (draws[:-1, 0] < 0.15)).sum()), 99_999, 0.15**2)


@given(st.integers(1, 1000), st.integers(0, 2**64 - 1))
def test_whole_numbers_are_below_the_end(end: int, key: int) -> None:
    rng = Draw(key)
    assert all(0 <= rng.integers(end) < end for _ in range(5))


def test_whole_numbers_are_uniform() -> None:
    rng = Draw(derive(0, "t"))
    for found in np.bincount([rng.integers(7) for _ in range(20_000)]):
        assert within_3_sigma(int(found), 20_000, 1 / 7)
