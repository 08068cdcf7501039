"""Bootstrap intervals against drawing by hand and against theory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp.metrics.bootstrap import interval


def by_hand(values: list[float], groups: list[int], statistic: str, draws: int) -> tuple[float, float]:
    rng = np.random.default_rng(7)
    members = {group: [v for v, g in zip(values, groups, strict=True) if g == group] for group in set(groups)}
    names, found = sorted(members), []
    for _ in range(draws):
        drawn = [value for group in rng.choice(names, len(names)) for value in members[group]]
        found.append(np.mean(drawn) if statistic == "mean" else np.median(drawn))
    return tuple(np.quantile(found, [0.025, 0.975]))


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_against_drawing_by_hand(statistic: str) -> None:
    rng = np.random.default_rng(0)
    groups = sorted(rng.integers(0, 30, 200).tolist())
    values = (rng.normal(size=200) + np.array(groups) / 10).tolist()
    low, high = interval(values, groups, statistic=statistic, draws=4000)  # type: ignore[arg-type]
    wanted_low, wanted_high = by_hand(values, groups, statistic, 4000)
    assert low == pytest.approx(wanted_low, abs=0.06)
    assert high == pytest.approx(wanted_high, abs=0.06)


def test_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).random(2500) < 0.4
    low, high = interval(values.astype(float), range(2500), draws=4000)
    error = 1.96 * (0.4 * 0.6 / 2500) ** 0.5
    assert (high - low) / 2 == pytest.approx(error, rel=0.1)
    assert low < values.mean() < high


def test_answers_on_one_image_are_drawn_together() -> None:
    # Ten copies of each value say no more than one: the interval is that of the groups, not ten times as sure.
    values = np.random.default_rng(2).random(100)
    alone = interval(values, range(100))
    copies = interval(np.repeat(values, 10), np.repeat(np.arange(100), 10).tolist())
    assert copies == pytest.approx(alone)
    apart = interval(np.repeat(values, 10), range(1000))
    assert apart[1] - apart[0] < 0.5 * (alone[1] - alone[0])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.sampled_from(["mean", "median"]))
def test_within_the_values(values: list[float], statistic: str) -> None:
    low, high = interval(values, range(len(values)), statistic=statistic, draws=60)  # type: ignore[arg-type]
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert interval(values, range(len(values)), statistic=statistic, draws=60) == (low, high)  # type: ignore[arg-type]


def test_of_nothing() -> None:
    assert all(np.isnan(interval([], [])))
