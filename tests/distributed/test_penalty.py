"""A penalty counts once per step, whatever the ranks and micro-batches, at every stage that keeps whole weights."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.ranks import run_on_ranks
from tests.distributed.standin import EPSILON, WEIGHTS, StandIn, batch_of, step_of
from vlp.distributed import World
from vlp.train.engine import Engine
from vlp.train.optimizer import OptimizerConfig, make_optimizer
from vlp.train.penalty import Penalty, PenaltyConfig
from vlp.train.zero import read_zero, zero_file

PENALTY = PenaltyConfig(l1=0.01, l2=0.5, toward="zero")
OPTIMIZER = OptimizerConfig(weight_decay=0.0, epsilon=EPSILON)
NUMBERS = list(range(8))


def one_step(world: World, stage: int, parts: list[list[list[int]]]) -> dict[str, torch.Tensor]:
    engine = Engine(
        StandIn(),
        weights=WEIGHTS,
        optimizer=OPTIMIZER,
        precision="fp32",
        zero=read_zero(zero_file(f"zero{stage}")),
        world=world,
        seed=0,
        penalty=PENALTY,
    )
    engine.train_step(step_of(0, [batch_of(part) for part in parts[world.rank]]), 0.01)
    weights = engine.full_weights()
    engine.close()
    return weights


def plain_step() -> dict[str, torch.Tensor]:
    task = StandIn()
    optimizer = make_optimizer(task, OPTIMIZER)
    batch = batch_of(NUMBERS)
    losses = task(batch)
    loss = sum(WEIGHTS[name] * total / batch.targets[name].count for name, total in losses.sums.items())
    (loss + Penalty(PENALTY, task)(task)).backward()
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    return task.state_dict()


SPLITS = {"1 rank": [[NUMBERS]], "2 ranks": [[NUMBERS[:3], NUMBERS[3:4]], [NUMBERS[4:], []]]}


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("split", SPLITS)
def test_a_penalty_counts_once(split: str, stage: int) -> None:
    parts = SPLITS[split]
    found = run_on_ranks(len(parts), one_step, stage=stage, parts=parts)[0]
    for name, weight in plain_step().items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)
