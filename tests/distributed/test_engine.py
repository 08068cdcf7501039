"""A step is a function of the global batch: not of ranks, micro-batches or the ZeRO stage."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.distributed.ranks import run_on_ranks
from tests.distributed.standin import EPSILON, OPTIMIZER, WEIGHTS, StandIn, batch_of, engine_of, split_step, step_of
from vlp.distributed import World
from vlp.errors import ConfigError, TrainingError
from vlp.train.optimizer import OptimizerConfig, make_optimizer, set_rate

STAGES = (0, 1, 2, 3)
NUMBERS = list(range(12))
MASKED = [n for n in NUMBERS if batch_of([n]).targets["words"].count > 0]
UNMASKED = [n for n in NUMBERS if n not in MASKED]


def one_step(world: World, stage: int, parts: list[list[list[int]]], clip: float | None) -> dict[str, Any]:
    engine = engine_of(world, stage, clip=clip)
    result = engine.train_step(step_of(0, [batch_of(part) for part in parts[world.rank]]), 0.01)
    weights = engine.full_weights()
    engine.close()
    return {"loss": result.loss, "norm": result.grad_norm, "result": result, "weights": weights}


def plain_step(clip: float | None) -> tuple[float, float, dict[str, torch.Tensor]]:
    """The same step by torch alone, on one padded-free batch of all examples."""
    task = StandIn()
    optimizer = make_optimizer(task, OptimizerConfig(weight_decay=0.1, epsilon=EPSILON))
    batch = batch_of(NUMBERS)
    losses = task(batch)
    loss = sum(WEIGHTS[name] * total / batch.targets[name].count for name, total in losses.sums.items())
    loss.backward()
    norm = nn.utils.clip_grad_norm_(task.parameters(), clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    return loss.item(), norm.item(), task.state_dict()


SPLITS = {
    "1 rank x 1": [[NUMBERS]],
    "1 rank x 4": [[[0], [1, 2, 3, 4, 5], [], [6, 7, 8, 9, 10, 11]]],
    "2 ranks x 1": [[NUMBERS[:5]], [NUMBERS[5:]]],
    "2 ranks x 2, one without target, one empty": [[UNMASKED, MASKED[:1]], [[], MASKED[1:]]],
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_step_is_a_function_of_the_global_batch(split: str, stage: int, clip: float | None) -> None:
    assert UNMASKED
    assert len(MASKED) > 1
    loss, norm, weights = plain_step(clip)
    assert norm > 1.5  # above DeepSpeed's own default of 1.0 for clipping, which must not act
    parts = SPLITS[split]
    results = run_on_ranks(len(parts), one_step, stage=stage, parts=parts, clip=clip)
    for found in results:
        assert found["loss"] == pytest.approx(loss, abs=1e-5)
        assert found["norm"] == pytest.approx(norm, abs=1e-5)
        assert found["result"].examples == 12
    for name, weight in weights.items():
        torch.testing.assert_close(results[0]["weights"][name], weight, atol=1e-5, rtol=0)


def alternating(world: World, stage: int, steps: int) -> dict[str, torch.Tensor]:
    engine = engine_of(world, stage)
    for number in range(steps):
        objective = ("words",) if number % 2 else ("match",)
        numbers = list(range(8 * number, 8 * number + 8))[world.rank :: world.size]
        engine.train_step(step_of(number, [batch_of(numbers[:1], objective), batch_of(numbers[1:], objective)]), 0.01)
    weights = engine.full_weights()
    engine.close()
    return weights


@pytest.mark.parametrize("stage", STAGES)
def test_one_objective_per_step_equals_a_plain_loop(stage: int) -> None:
    steps = 50
    task = StandIn()
    optimizer = make_optimizer(task, OptimizerConfig(weight_decay=0.1, epsilon=EPSILON))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for number in range(steps):
        objective = "words" if number % 2 else "match"
        batch = batch_of(list(range(8 * number, 8 * number + 8)), (objective,))
        optimizer.zero_grad()
        # Both sums: the idle head sees zero rows, its gradient is zero and AdamW still decays it.
        sums = task(batch).sums
        (sum(WEIGHTS[n] * s for n, s in sums.items()) / batch.targets[objective].count).backward()
        optimizer.step()
    found = run_on_ranks(2, alternating, stage=stage, steps=steps)[0]
    for name, weight in task.state_dict().items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)


def some_steps(world: World, stage: int, **options: Any) -> dict[str, torch.Tensor]:
    engine = engine_of(world, stage, **options)
    for number in range(4):
        engine.train_step(split_step(number, world, 2), 0.01)
    weights = engine.full_weights()
    engine.close()
    return weights


def plain_steps(optimizer: OptimizerConfig) -> dict[str, torch.Tensor]:
    task = StandIn()
    made = make_optimizer(task, optimizer)
    for number in range(4):
        batch = batch_of(list(range(12 * number, 12 * number + 12)))
        made.zero_grad()
        losses = task(batch).sums
        sum(WEIGHTS[name] * loss / batch.targets[name].count for name, loss in losses.items()).backward()  # type: ignore[union-attr]
        set_rate(made.param_groups, optimizer, 0.01, number + 1)
        made.step()
    return task.state_dict()


UNUSUAL = OptimizerConfig.parse(
    {
        "weight_decay": 0.1,
        "epsilon": EPSILON,
        "bias_correction": False,
        "groups": [{"pattern": "embed", "learning_rate": 0.1}, {"pattern": "words", "weight_decay": 0.5}],
    }
)
LAMB = OptimizerConfig(kind="lamb", weight_decay=0.1, epsilon=EPSILON)


@pytest.mark.parametrize("stage", STAGES)
def test_groups_and_missing_bias_correction_hold_at_every_stage(stage: int) -> None:
    found = run_on_ranks(2, some_steps, stage=stage, precision="fp32", optimizer=UNUSUAL)[0]
    for name, weight in plain_steps(UNUSUAL).items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", [2, 3])
def test_offloading_changes_no_number(stage: int) -> None:
    found = run_on_ranks(2, some_steps, stage=stage, offload=True)[0]
    for name, weight in plain_steps(OPTIMIZER).items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)


def test_lamb_at_stage_0_equals_a_plain_loop() -> None:
    found = run_on_ranks(2, some_steps, stage=0, precision="fp32", optimizer=LAMB)[0]
    for name, weight in plain_steps(LAMB).items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0)


def test_lamb_at_stage_0_in_bf16_keeps_fp32_weights() -> None:
    found = run_on_ranks(2, some_steps, stage=0, precision="bf16", optimizer=LAMB)[0]
    for name, weight in plain_steps(LAMB).items():
        torch.testing.assert_close(found[name], weight, atol=2e-2, rtol=0)


def test_lamb_is_refused_where_tensors_are_cut() -> None:
    with pytest.raises(ConfigError, match=r"lamb .* ZeRO stage 2 .* zero0"):
        run_on_ranks(2, some_steps, stage=2, precision="fp32", optimizer=LAMB)


def poisoned(world: World, stage: int, precision: str, kind: str) -> list[Any]:
    engine = engine_of(world, stage, precision=precision)
    engine.train_step(split_step(0, world, 2), 0.01)
    before = engine.full_weights()
    bad = split_step(1, world, 2)
    if world.rank == world.size - 1:
        if kind == "gradient":
            bad.micro_batches[0].image.features_MD[0] = math.nan
        else:
            engine.task.offset = math.inf
    skipped = engine.train_step(bad, 0.01)
    engine.task.offset = 0.0
    after = engine.full_weights()
    good = engine.train_step(split_step(2, world, 2), 0.01)
    end = engine.full_weights()
    engine.close()
    return [before, after, end, skipped, good, engine.skipped_steps]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["gradient", "loss"])
def test_a_step_that_is_not_finite_changes_nothing(stage: int, precision: str, kind: str) -> None:
    for before, after, end, skipped, good, count in run_on_ranks(
        2, poisoned, stage=stage, precision=precision, kind=kind
    ):
        assert not skipped.applied
        assert not math.isfinite(skipped.loss)
        assert good.applied
        assert math.isfinite(good.loss)
        assert count == 1
        for name in before:
            assert torch.equal(before[name], after[name])
            assert torch.isfinite(end[name]).all()
        assert not before or any(not torch.equal(before[name], end[name]) for name in before)


def uneven(world: World) -> None:
    engine_of(world, 2).train_step(step_of(0, [batch_of([world.rank])] * (1 + world.rank)), 0.01)


def test_unequal_numbers_of_micro_batches_are_refused() -> None:
    with pytest.raises(TrainingError, match="different numbers of micro-batches"):
        run_on_ranks(2, uneven)


def stopping(world: World) -> list[bool]:
    engine = engine_of(world, 0)
    results = [engine.train_step(split_step(n, world, 1), 0.01, stop=n == 1 and world.rank == 1) for n in range(2)]
    engine.close()
    return [result.stop for result in results]


def test_ranks_agree_to_stop() -> None:
    assert run_on_ranks(2, stopping) == [[False, True]] * 2


def noisy(world: World, stage: int, number: int = 0, seed: int = 1, repeat: int = 1) -> float:
    """The loss of one batch, the same on all ranks and `repeat` times on each: dropout alone makes a difference."""
    engine = engine_of(world, stage, dropout=0.5, seed=seed)
    loss = engine.train_step(step_of(number, [batch_of(NUMBERS)] * repeat), 0.0).loss
    engine.close()
    return loss


def test_dropout_is_drawn_from_seed_step_rank_and_micro_batch() -> None:
    loss = run_on_ranks(1, noisy, stage=0)[0]
    assert run_on_ranks(1, noisy, stage=0)[0] == loss
    assert run_on_ranks(1, noisy, stage=3)[0] == pytest.approx(loss, abs=1e-5)
    for change in ({"seed": 2}, {"number": 1}, {"repeat": 2}):
        assert run_on_ranks(1, noisy, stage=0, **change)[0] != pytest.approx(loss, abs=1e-3)
    assert run_on_ranks(2, noisy, stage=0)[0] != pytest.approx(loss, abs=1e-3)


def fp16(world: World) -> None:
    engine_of(world, 1, precision="fp16")


def test_fp16_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision: fp16 needs a GPU"):
        run_on_ranks(1, fp16)


class Plane(nn.Module):
    """A loss whose gradient is long."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * self.layer(x).square().sum()  # type: ignore[no-any-return]


def sgd(world: World, stage: int, clip: float | None) -> tuple[float, torch.Tensor]:
    """A step of plain SGD, which moves as far as the gradient is long, under the engine's configuration."""
    from vlp.train.quiet import import_deepspeed
    from vlp.train.zero import engine_config

    module = Plane()
    config = engine_config({"zero_optimization": {"stage": stage}}, "fp32", clip)
    config["zero_allow_untested_optimizer"] = True
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    engine, *_ = import_deepspeed().initialize(model=module, optimizer=optimizer, config=config)
    engine.backward(engine(torch.ones(2, 7) * (1 + world.rank)))
    engine.step()
    norm = float(engine.get_global_grad_norm() or math.nan)
    import deepspeed

    with deepspeed.zero.GatheredParameters([module.layer.weight], enabled=stage == 3):
        weight = module.layer.weight.detach().clone()
    engine.destroy()
    return norm, weight


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("clip", [None, 2.0])
def test_no_clipping_in_the_recipe_means_none_and_clipping_is_global(stage: int, clip: float | None) -> None:
    plain = Plane()
    (sum(plain(torch.ones(2, 7) * size) for size in (1, 2)) / 2).backward()  # type: ignore[union-attr]
    norm = nn.utils.clip_grad_norm_(plain.parameters(), clip or math.inf)
    assert norm > 10
    torch.optim.SGD(plain.parameters(), lr=1e-3).step()
    for _, weight in run_on_ranks(2, sgd, stage=stage, clip=clip):
        torch.testing.assert_close(weight, plain.layer.weight.detach(), atol=1e-6, rtol=1e-6)
