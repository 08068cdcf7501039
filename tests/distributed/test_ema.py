"""The running mean of the weights, at every ZeRO stage and through a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import run_on_ranks
from tests.distributed.standin import engine_of, split_step
from vlp.distributed import World
from vlp.train.checkpoint import CheckpointConfig, Checkpoints
from vlp.train.ema import EmaConfig

STEPS, DECAY = 5, 0.7


def averaged(world: World, stage: int, precision: str, warmup: bool) -> dict[str, Any]:
    engine = engine_of(world, stage, precision=precision, ema=EmaConfig(decay=DECAY, warmup=warmup))
    trail = [engine.full_weights()]
    for number in range(STEPS):
        engine.train_step(split_step(number, world, 2), 0.01)
        trail.append(engine.full_weights())
    with engine.averaged():
        mean = engine.full_weights()
        bias = engine.inference(lambda task: task(engine.to_device(split_step(9, world, 1).micro_batches[0])))
    after = engine.full_weights()
    resumed = engine.train_step(split_step(STEPS, world, 2), 0.01).loss
    engine.close()
    return {"trail": trail, "mean": mean, "after": after, "loss": float(bias.sums["words"]), "next": resumed}


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_mean_is_that_of_the_weights_after_each_step(stage: int, precision: str, warmup: bool) -> None:
    found = run_on_ranks(2, averaged, stage=stage, precision=precision, warmup=warmup)[0]
    for name in ("embed.weight", "body.bias", "words.weight"):
        expected = found["trail"][0][name]
        for step, weights in enumerate(found["trail"][1:], 1):
            decay = min(DECAY, (1 + step) / (10 + step)) if warmup else DECAY
            expected = decay * expected + (1 - decay) * weights[name]
        torch.testing.assert_close(found["mean"][name], expected, atol=1e-6, rtol=0)
        assert not torch.equal(found["mean"][name], found["trail"][-1][name])
    for name, weight in found["trail"][-1].items():
        assert torch.equal(found["after"][name], weight), "training goes on from the weights, not from their mean"


def test_forward_sees_the_mean() -> None:
    losses = {stage: run_on_ranks(2, averaged, stage=stage, precision="fp32", warmup=False)[0] for stage in (0, 2, 3)}
    assert losses[2]["loss"] == pytest.approx(losses[0]["loss"], abs=1e-5)
    assert losses[3]["loss"] == pytest.approx(losses[0]["loss"], abs=1e-5)
    assert losses[3]["next"] == pytest.approx(losses[0]["next"], abs=1e-5)


def stopped_and_resumed(world: World, stage: int, directory: Path, first: int, last: int) -> dict[str, torch.Tensor]:
    engine = engine_of(world, stage, ema=EmaConfig(decay=DECAY))
    checkpoints = Checkpoints(directory, CheckpointConfig(), world, {})
    checkpoints.load_newest(engine)
    for number in range(first, last):
        engine.train_step(split_step(number, world, 2), 0.01)
    checkpoints.save(engine, last)
    with engine.averaged():
        mean = engine.full_weights()
    engine.close()
    return mean


@pytest.mark.parametrize(("before", "after"), [(2, 2), (1, 3), (3, 0)])
def test_a_checkpoint_keeps_the_mean_at_any_stage(tmp_path: Path, before: int, after: int) -> None:
    whole = run_on_ranks(2, stopped_and_resumed, stage=before, directory=tmp_path / "whole", first=0, last=6)[0]
    run_on_ranks(2, stopped_and_resumed, stage=before, directory=tmp_path / "parts", first=0, last=3)
    parts = run_on_ranks(1, stopped_and_resumed, stage=after, directory=tmp_path / "parts", first=3, last=6)[0]
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, atol=1e-6, rtol=0)


def load_mean(world: World, directory: Path, keep: bool) -> dict[str, torch.Tensor]:
    engine = engine_of(world, 2, ema=EmaConfig() if keep else None)
    checkpoints = Checkpoints(directory, CheckpointConfig(), world, {})
    if checkpoints.load_newest(engine) is None:
        engine.train_step(split_step(0, world, 2), 0.01)
        checkpoints.save(engine, 1)
    with engine.averaged():
        mean = engine.full_weights()
    engine.close()
    return mean


def test_a_mean_that_was_not_kept_before_starts_at_the_weights(tmp_path: Path) -> None:
    weights = run_on_ranks(2, load_mean, directory=tmp_path, keep=False)[0]
    for name, mean in run_on_ranks(2, load_mean, directory=tmp_path, keep=True)[0].items():
        assert torch.equal(mean, weights[name])
