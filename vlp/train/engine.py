"""The engine: a step as a function of the global batch, on DeepSpeed at every ZeRO stage.

    loss of a micro-batch = world size * sum over objectives of weight * sum / count over the global batch

DeepSpeed takes the mean of gradients over ranks, hence the world size. The counts come from the data, so they are
known before the first forward; with them travels all else that ranks must agree on, in one small all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from vlp.distributed import World, share, sum_over_ranks
from vlp.errors import ConfigError, DataError, TrainingError
from vlp.freed import give_back, keep
from vlp.seeds import derive
from vlp.train.bounds import Bounds
from vlp.train.dataparallel import DataParallel
from vlp.train.ema import EMA, EmaConfig, Mean
from vlp.train.forward import Forward, Metrics, Root
from vlp.train.linear import own_linear
from vlp.train.optimizer import OptimizerConfig, make_optimizer, set_rate
from vlp.train.penalty import Penalty, PenaltyConfig
from vlp.train.quiet import import_deepspeed
from vlp.train.scaler import scaler_state, set_scaler_state
from vlp.train.states import Piece, States
from vlp.train.survey import momentum_of, survey_of
from vlp.train.untrained import Untrained
from vlp.train.zero import Precision, engine_config, stage_of

if TYPE_CHECKING:
    from vlp.types import Batch, Step

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did, over all ranks."""

    loss: float
    """Weighted sum of the objectives' losses."""
    losses: dict[str, float]
    """Mean loss per objective; objectives without a target in this step are missing."""
    metrics: dict[str, float]
    grad_norm: float
    """Global norm before clipping; not finite if the step was skipped."""
    applied: bool
    """False if loss or gradient was not finite, so that no weight changed."""
    stop: bool
    """True if any rank asked to stop."""
    save: bool
    """True if any rank asked for a checkpoint."""
    examples: int
    tokens: int
    padding: float
    """Share of padding where each micro-batch's examples are laid out as long as its longest."""
    micro_batches: int
    """Per rank."""
    cut_texts: int
    quarantined: int


class Engine:
    """Trains a task module.

    Args:
        task: maps a `Batch` to `Losses`. Each forward calls every parameter, on zero rows where it has nothing to do:
            ZeRO 1-3 crash, hang or reuse an old gradient otherwise. Submodules with parameters of their own return
            tensors, or tuples, lists or dicts of them (ZeRO-3 hooks see no others). Every forward, on every rank,
            reports the same metrics.
        weights: weight of each objective in the loss; an objective that is not named here is refused.
        optimizer: its settings.
        heights: layers between a parameter of the task and its heads, by name; for `optimizer.layer_decay`.
        ema: keep a running mean of the weights.
        penalty: on the weights, added to the loss once per step.
        precision: fp32, bf16, or, on GPUs, fp16 with a dynamic loss scale.
        zero: what `vlp.train.zero.read_zero` gave.
        world: what `vlp.distributed.world` gave.
        seed: of the run; dropout is drawn from (seed, step, rank, micro-batch).
        log_file: where DeepSpeed's warnings go.
    Raises:
        ConfigError: precision or ZeRO settings that cannot be used.
    """

    def __init__(
        self,
        task: nn.Module,
        *,
        weights: Mapping[str, float],
        optimizer: OptimizerConfig,
        precision: Precision,
        zero: dict[str, Any],
        world: World,
        seed: int,
        heights: Mapping[str, int] | None = None,
        ema: EmaConfig | None = None,
        penalty: PenaltyConfig | None = None,
        log_file: Path | None = None,
    ) -> None:
        _check_optimizer(optimizer, zero)
        if penalty is not None and stage_of(zero) == 3:
            raise ConfigError("penalty: ZeRO stage 3 keeps no whole weight to penalise: set deepspeed to zero2")
        deepspeed = import_deepspeed(log_file)
        own_linear()  # of a run before that did not come to its end
        self.world = world
        self.seed = seed
        self.precision = precision
        self.stage = stage_of(zero)
        self.skipped_steps = 0
        self._weights = dict(weights)
        self._dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self._root = Root(task)
        self._penalty = None if penalty is None else Penalty(penalty, task)
        self._optimizer = optimizer
        made = make_optimizer(task, optimizer, heights)
        own = self.stage == 0 and precision != "fp16"
        config = engine_config(
            zero, "fp32" if own else precision, optimizer.clip_norm, cuda=world.device.type == "cuda"
        )
        self._engine, *_ = deepspeed.initialize(model=self._root, optimizer=made, config=config)
        self._parallel = None
        if own:
            self._engine.enable_backward_allreduce = False
            bucket = config["zero_optimization"]["reduce_bucket_size"]
            self._parallel = DataParallel(self._root, made, self._dtype or torch.float32, world.size, bucket)
        trained = {name: p for name, p in self._root.task.named_parameters() if p.requires_grad}
        self.states = States(self._engine, trained, self._parallel.masters if self._parallel else None)
        self.untrained = Untrained(task, self.stage)
        self._bounds = Bounds(task, self.states)
        self._ema = Mean(EMA, ema, self.states) if ema is not None else None
        momentum = momentum_of(task, self.states)
        self._means = [mean for mean in (self._ema, momentum) if mean is not None]
        self._survey = survey_of(
            task,
            momentum,
            run=self._without_graph,
            seeded=self._seed_dropout,
            to_device=self.to_device,
            world=world,
            seed=seed,
        )
        self._give_back()  # the whole model, of which this rank has kept its part
        # Not at higher stages, which are for memory: what DeepSpeed lets go of there leaves gaps of hundreds of MB.
        if world.device.type == "cpu" and self.stage <= (1 if precision == "bf16" else 0):
            keep()

    @property
    def task(self) -> nn.Module:
        """The task module. At ZeRO stage 3 its parameters are empty outside `inference` and `train_step`."""
        return self._root.task

    def to_device(self, batch: Batch) -> Batch:
        """A batch where and as forward needs it."""
        return batch.to(self.world.device, self._dtype)

    def inference(self, call: Callable[[nn.Module], T]) -> T:
        """`call(task)` in evaluation mode and without gradients.

        At ZeRO stage 3 forward is collective: all ranks call this equally often.
        """
        self._root.eval()
        try:
            return self._without_graph(call)
        finally:
            self._root.train()

    def _without_graph(self, call: Callable[[nn.Module], T]) -> T:
        with torch.no_grad():
            result: tuple[T] = self._root(lambda task: (call(task),))
            return result[0]

    def _seed_dropout(self, step: int, micro_batch: int) -> None:
        """Before each forward, so that nothing of a random generator is part of a run's state."""
        torch.manual_seed(derive(self.seed, "dropout", step, self.world.rank, micro_batch))

    def train_step(self, step: Step, learning_rate: float, *, stop: bool = False, save: bool = False) -> StepResult:
        """One optimizer step on a global batch; collective.

        Args:
            step: this rank's micro-batches, equally many on every rank.
            learning_rate: of this step.
            stop, save: this rank wishes to stop, or to save; the result says if any rank does.
        Raises:
            TrainingError: ranks disagree on the number of micro-batches or on the metrics.
            DataError: a rank's step could not be made; raised on all ranks, before anything else is done.
        """
        agreed = self._agree(step, stop, save)
        scales_O = self._scales(agreed.counts)
        sums_O = torch.zeros(len(self._weights), dtype=torch.float64, device=self.world.device)
        metrics = Metrics()
        batches = step.micro_batches if self._survey is None else self._survey.look(step, agreed.counts)
        for index, batch in enumerate(batches):
            self._seed_dropout(step.number, index)
            last = index == len(step.micro_batches) - 1
            self._engine.set_gradient_accumulation_boundary(last)
            penalty = self._penalty if last else None
            forward = Forward(self.to_device(batch), list(self._weights), scales_O, penalty)
            loss, part_O, measured = self._engine(forward)
            self._engine.backward(loss)
            if self._parallel is not None and len(step.micro_batches) > 1:
                self._parallel.accumulate()
            sums_O += part_O
            metrics.add(measured)
        grad_norm, applied = self._update(learning_rate)
        self.skipped_steps += not applied
        self._follow(applied)
        self._give_back()
        means_O, measures = self._report(sums_O, agreed.counts, metrics)
        losses = {name: mean for name, mean in means_O.items() if agreed.counts[name] > 0}
        return StepResult(
            loss=sum(self._weights[name] * mean for name, mean in losses.items()),
            losses=losses,
            metrics=measures,
            grad_norm=grad_norm,
            applied=applied,
            stop=agreed.stop,
            save=agreed.save,
            examples=agreed.examples,
            tokens=agreed.tokens,
            padding=1 - agreed.tokens / max(1, agreed.padded_tokens),
            micro_batches=len(step.micro_batches),
            cut_texts=agreed.cut_texts,
            quarantined=agreed.quarantined,
        )

    def _agree(self, step: Step, stop: bool, save: bool) -> _Agreed:
        """The counts of the global batch and all else ranks must agree on: one all-reduce before any forward."""
        batches = step.micro_batches
        unknown = {name for batch in batches for name in batch.targets} - set(self._weights)
        assert not unknown, f"batches hold targets of objectives that have no weight: {unknown}"
        counts = [sum(b.targets[n].count for b in batches if n in b.targets) for n in self._weights]
        tokens = sum(batch.tokens for batch in batches)
        own = {
            "stop": float(stop),
            "save": float(save),
            "failures": float(bool(step.failure)),
            "examples": step.examples,
            "tokens": tokens,
            "padded_tokens": sum(batch.padded_tokens for batch in batches),
            "cut_texts": step.cut_texts,
            "quarantined": len(step.quarantined),
            "micro_batches": len(batches),
            "micro_batches_squared": len(batches) ** 2,
        }
        values = torch.tensor([*own.values(), *counts], dtype=torch.float64, device=self.world.device)
        names = [*own, *(f"count/{name}" for name in self._weights)]
        total = dict(zip(names, sum_over_ranks(values).tolist(), strict=True))
        if total["failures"]:
            raise DataError(next(failure for failure in share(step.failure, self.world) if failure))
        if total["micro_batches"] ** 2 != self.world.size * total["micro_batches_squared"] or not batches:
            raise TrainingError(
                f"step {step.number + 1}: ranks have different numbers of micro-batches (rank {self.world.rank} has "
                f"{len(batches)}), which would hang; this is a defect of the loader, please report it"
            )
        return _Agreed(
            counts={name: total[f"count/{name}"] for name in self._weights},
            stop=total["stop"] > 0,
            save=total["save"] > 0,
            examples=int(total["examples"]),
            tokens=int(total["tokens"]),
            padded_tokens=int(total["padded_tokens"]),
            cut_texts=int(total["cut_texts"]),
            quarantined=int(total["quarantined"]),
        )

    def _scales(self, counts: Mapping[str, float]) -> Tensor:
        """What each objective's sum is multiplied by; 0 where the global batch has no target."""
        factors = [w * self.world.size / counts[n] if counts[n] > 0 else 0.0 for n, w in self._weights.items()]
        return torch.tensor(factors, dtype=torch.float32, device=self.world.device)

    def _update(self, learning_rate: float) -> tuple[float, bool]:
        """Apply the gradients unless they are not finite; returns their norm and whether they were applied."""
        set_rate(self._engine.optimizer.param_groups, self._optimizer, learning_rate, self.states.steps + 1)
        if self._parallel is not None:
            return self._parallel.step(self._optimizer.clip_norm)
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        norm = self._engine.get_global_grad_norm()  # None, a float or a tensor, depending on the stage
        return (float(norm) if norm is not None else math.nan), applied

    def _follow(self, applied: bool) -> None:
        """All that changes with the weights."""
        if applied:
            self._bounds.apply()
            for mean in self._means:
                mean.update(self.states.steps)
        if self._survey is not None:
            self._survey.end(applied)

    def _give_back(self) -> None:
        if self.stage == 3 and self.world.device.type == "cpu":
            give_back()

    def _report(
        self, sums_O: Tensor, counts: Mapping[str, float], metrics: Metrics
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Mean losses and metrics over all ranks: the step's second and last small all-reduce."""
        names, own = metrics.packed(self.world.device)
        code = torch.tensor([derive(0, "/".join(names)) % 2**20], dtype=torch.float64, device=self.world.device)
        total = sum_over_ranks(torch.cat([code, sums_O, own])).tolist()
        if total[0] != self.world.size * code.item():
            listed = ", ".join(names) or "none"
            raise TrainingError(f"ranks report different metrics (rank {self.world.rank}: {listed})")
        sums, rest = total[1 : 1 + len(self._weights)], total[1 + len(self._weights) :]
        means = {n: s / counts[n] if counts[n] > 0 else 0.0 for n, s in zip(self._weights, sums, strict=True)}
        values, weights = rest[: len(names)], rest[len(names) :]
        measures = {n: v / w for n, v, w in zip(names, values, weights, strict=True) if w > 0}
        return means, measures

    def averaged(self) -> AbstractContextManager[None]:
        """Within it the weights are their running mean, if one is kept; collective. For evaluation and export."""
        return self._ema.in_place() if self._ema is not None else nullcontext()

    def pieces(self) -> Iterator[Piece]:
        """What this rank holds of the trained parameters, with all that a checkpoint keeps of them."""
        for piece in self.states.pieces():
            means = {mean.kind: mean.values[piece.name] for mean in self._means}
            yield replace(piece, values=piece.values | means)

    def queue(self) -> dict[str, Tensor]:
        """The queue of contrast's momentum model, by part; empty where there is none."""
        return {} if self._survey is None or not self._survey.momentum else self._survey.queue.tensors()

    def set_queue(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `queue` gave; from nothing it stays empty."""
        if self._survey is not None:
            self._survey.queue.set(tensors)

    @property
    def scaler(self) -> dict[str, float]:
        """State of the loss scale; empty but in fp16."""
        return scaler_state(self._engine.optimizer)

    @scaler.setter
    def scaler(self, state: Mapping[str, float]) -> None:
        set_scaler_state(self._engine.optimizer, state)

    def shapes(self) -> dict[str, list[int]]:
        """Shape of each trained parameter by name."""
        return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in self.states.parameters.items()}

    def full_weights(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, trained ones in fp32, on the CPU of rank 0; collective."""
        weights = {}
        for name, parameter in self.states.parameters.items():
            full = self.states.full_weight(parameter)
            if self.world.is_main:
                weights[name] = full.detach().float().cpu().clone()
        kept = self.untrained.values()
        return weights | {name: tensor.cpu().clone() for name, tensor in kept.items()} if self.world.is_main else {}

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers, and what it replaced."""
        self._engine.destroy()
        own_linear()


def _check_optimizer(optimizer: OptimizerConfig, zero: dict[str, Any]) -> None:
    if optimizer.kind == "lamb" and stage_of(zero) > 0:
        raise ConfigError(
            f"optimizer.kind: lamb scales each tensor by its norm, and ZeRO stage {stage_of(zero)} cuts tensors into "
            "shards, whose norms differ: set deepspeed to zero0, or take adamw"
        )


@dataclass(frozen=True, slots=True)
class _Agreed:
    counts: dict[str, float]
    stop: bool
    save: bool
    examples: int
    tokens: int
    padded_tokens: int
    cut_texts: int
    quarantined: int
