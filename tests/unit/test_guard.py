"""Losses that leap, and runs that only skip."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vlp.distributed import World
from vlp.errors import TrainingError
from vlp.train.guard import Guard, GuardConfig
from vlp.train.logs import LogConfig, Logs


def guard_of(**config: float) -> Guard:
    world = World(1, 2, 1, torch.device("cpu"))  # not the rank that writes
    return Guard(GuardConfig.parse(config), Logs(Path(), LogConfig(), world, steps=1), world)


def watched(losses: list[float], name: str = "mlm", **config: float) -> list[int]:
    guard = guard_of(**config)
    return [number for number, loss in enumerate(losses) if guard.spikes({name: loss})]


def noise(count: int) -> list[float]:
    return np.random.default_rng(0).normal(2.0, 0.1, count).tolist()


def test_a_leap_is_a_spike_and_noise_is_none() -> None:
    assert watched(noise(500)) == []
    assert watched([*noise(200), 2.9, *noise(50)]) == [200]
    assert watched([*noise(200), 2.35], spike_sigma=3) == [200]


def test_a_drop_is_no_spike() -> None:
    assert watched([*noise(200), 0.1]) == []


def test_the_first_losses_have_no_range_yet() -> None:
    assert watched([*noise(10), 50.0]) == []


def test_the_window_forgets() -> None:
    falling = [10 - 0.02 * step for step in range(400)]
    assert watched([*falling, 9.0]) == [400], "9 was ordinary 350 steps earlier"


def test_objectives_have_windows_of_their_own() -> None:
    guard = guard_of()
    found = []
    for low in noise(100):
        found += guard.spikes({"itm": low}) + guard.spikes({"mlm": 50 + low})
    assert found == []
    assert [spike.objective for spike in guard.spikes({"itm": 50.0, "mlm": 52.0})] == ["itm"]


def test_a_loss_that_is_not_finite_leaves_the_window_alone() -> None:
    assert watched([*noise(200), math.nan, math.inf, 2.9]) == [202]


def test_skipping_on_and_on_ends_the_run() -> None:
    guard = guard_of(skipped_in_a_row=3)
    for step, applied in enumerate([False, False, True, False, False]):
        guard.applied(step, applied, {"mlm": math.nan}, math.nan)
    with pytest.raises(TrainingError, match=r"step 6: 3 steps in a row .* the loss of mlm is not finite.*targets"):
        guard.applied(6, False, {"mlm": math.nan, "itm": 1.0}, math.nan)


def test_a_gradient_that_explodes_points_at_the_rate() -> None:
    guard = guard_of(skipped_in_a_row=1)
    with pytest.raises(TrainingError, match=r"gradient norm is inf, not finite: look at optimizer.learning_rate"):
        guard.applied(1, False, {"mlm": 2.0}, math.inf)
