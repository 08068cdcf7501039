"""What an evaluation needs: a model to run, examples to run it on, and the other ranks to add up with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import nn

from vlp.data.dataset import Dataset
from vlp.data.loader import EvaluationLoader
from vlp.distributed import World, gather_lists, share, sum_over_ranks
from vlp.tasks.outcomes import Judgement
from vlp.types import Batch, Step

if TYPE_CHECKING:
    from vlp.tasks.task import Task

T = TypeVar("T")


class Runner(Protocol):
    """Something that runs a task module without training it: the training engine, or `vlp.evaluate.Inference`."""

    world: World

    def to_device(self, batch: Batch) -> Batch: ...

    def inference(self, call: Callable[[nn.Module], T]) -> T: ...


@dataclass(frozen=True)
class Judge:
    """An evaluation's means. All ranks make the same calls in the same order: at ZeRO stage 3 forward is collective."""

    runner: Runner
    dataset: Dataset
    micro_tokens: int
    """Most tokens of a batch."""
    seed: int
    limit: int | None = None
    """Judge only so many examples, or images where all pairs are ranked (the first ones in index order)."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Is told how much of a long evaluation is done, on rank 0."""
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    """What this rank could not read, by shard and key; filled as batches are read."""

    @property
    def world(self) -> World:
        return self.runner.world

    def batches(self, task: Task) -> Iterator[Step]:
        """This rank's share of the dataset as steps of one micro-batch, equally many on every rank."""
        loader = EvaluationLoader(
            self.dataset,
            task,
            image_tokens=task.image_tokens,
            micro_tokens=self.micro_tokens,
            seed=self.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            limit=self.limit,
        )
        for done, step in enumerate(loader, start=1):
            if self.world.is_main:
                self.progress(done, len(loader))
            self.left_out.update({f"{bad['shard']}/{bad['key']}": bad for bad in step.quarantined})
            yield step

    def metrics(self, task: Task) -> dict[str, float]:
        """What the task measures, and how many samples could not be read, if any; on every rank."""
        return self.shared(task.evaluate(self) | self._unreadable())[0]

    def judged(self, task: Task) -> Judgement:
        """The same, with what became of each example."""
        found = task.judged(self)
        return replace(found, metrics=found.metrics | self._unreadable())

    def _unreadable(self) -> dict[str, float]:
        lost = torch.tensor(float(len(self.left_out)), dtype=torch.float64, device=self.world.device)
        unreadable = float(sum_over_ranks(lost))
        return {"unreadable_samples": unreadable} if unreadable else {}

    def run(self, batch: Batch, call: Callable[[Any, Batch], T]) -> T:
        """`call(task module, batch)` on the device, without gradients."""
        moved = self.runner.to_device(batch)
        return self.runner.inference(lambda module: call(module, moved))

    def averaged(self, totals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        """(sum, count) per metric, added over ranks and divided; the names must be the same on all ranks."""
        names = sorted(totals)
        values = torch.tensor([totals[name] for name in names], dtype=torch.float64, device=self.world.device)
        if names:
            sum_over_ranks(values)
        return {
            name: float(total / count) for name, (total, count) in zip(names, values.tolist(), strict=True) if count
        }

    def shared(self, record: T) -> list[T]:
        """One record of each rank, on every rank."""
        return share(record, self.world)

    def gathered(self, records: list[Any]) -> list[Any]:
        """The records of all ranks in rank order, on rank 0; empty elsewhere."""
        return gather_lists(records, self.world)


class Totals:
    """Sums and counts of metrics over batches."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[float, float]] = {}

    def add(self, name: str, total: float, count: float) -> None:
        before = self.values.get(name, (0.0, 0.0))
        self.values[name] = (before[0] + total, before[1] + count)
