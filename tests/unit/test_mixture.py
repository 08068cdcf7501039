import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp.data.mixture import Mixture, by_temperature
from vlp.errors import ConfigError


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=4), st.integers(0, 10**9), st.integers(1, 300))
def test_mixture_counts_are_those_of_its_draws(weights: list[float], first: int, draws: int) -> None:
    mixture = Mixture(weights, seed=5, group=1)
    drawn = np.bincount(mixture.datasets(first, draws), minlength=len(weights))
    before, after = mixture.counts(first), mixture.counts(first + draws)
    assert (np.array(after) - before).tolist() == drawn.tolist()
    assert sum(after) == first + draws
    shares = np.array(weights) / sum(weights)
    # Shares are whole numbers of 2**-24.
    assert np.abs(np.array(after) - shares * (first + draws)).max() <= len(weights) + (first + draws) * 2**-23


def test_mixture_draws_do_not_depend_on_where_one_begins() -> None:
    mixture = Mixture([0.5, 0.3, 0.2], seed=5, group=0)
    whole = mixture.datasets(0, 100)
    assert np.array_equal(whole, np.concatenate([mixture.datasets(start, 20) for start in range(0, 100, 20)]))
    assert not np.array_equal(whole, Mixture([0.5, 0.3, 0.2], seed=6, group=0).datasets(0, 100))


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, -1.0], [float("nan")], [float("inf"), 1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"data\.train: weights"):
        Mixture(weights, seed=0, group=0)


def test_temperature_goes_from_sizes_to_evenness() -> None:
    sizes = [1_000_000, 10_000, 100]
    by_size, even = by_temperature(sizes, 1), by_temperature(sizes, 1e9)
    assert np.array(by_size) / by_size[2] == pytest.approx([10_000, 100, 1])
    assert np.array(even) / even[2] == pytest.approx([1, 1, 1])
    assert np.array(by_temperature(sizes, 2)) == pytest.approx([1000, 100, 10])


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=5), st.floats(1, 100))
def test_a_larger_dataset_never_gets_less(sizes: list[int], temperature: float) -> None:
    weights = by_temperature(sizes, temperature)
    order = np.argsort(sizes, kind="stable")
    assert (np.diff(np.array(weights)[order]) >= 0).all()
    Mixture(weights, seed=0, group=0)
