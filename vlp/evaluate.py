"""Evaluation of a trained model, on one or several ranks, without the training engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import nn

from vlp.data.dataset import Dataset
from vlp.distributed import World
from vlp.tasks.judge import Judge
from vlp.tasks.outcomes import Judgement
from vlp.tasks.saved import Trained
from vlp.types import Batch

T = TypeVar("T")
Precision = Literal["fp32", "bf16"]


class Inference:
    """A module on this rank's device, to run without gradients (see `vlp.tasks.judge.Runner`)."""

    def __init__(self, module: nn.Module, world: World, precision: Precision = "fp32") -> None:
        self.world = world
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._module = module.to(world.device, self._dtype).eval()

    def to_device(self, batch: Batch) -> Batch:
        return batch.to(self.world.device, self._dtype)

    def inference(self, call: Callable[[nn.Module], T]) -> T:
        """`call(module)` without gradients."""
        with torch.inference_mode():
            return call(self._module)


def evaluate(
    trained: Trained,
    dataset: Dataset,
    world: World,
    *,
    micro_tokens: int,
    limit: int | None = None,
    precision: Precision = "fp32",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Judgement:
    """Metrics of a trained model on a dataset, and what became of each example; on rank 0, empty elsewhere.

    Args:
        limit: judge only so many examples, or images where all pairs are ranked.
        progress: is told the batches done and their number, on rank 0.
    """
    judge = Judge(Inference(trained.module(), world, precision), dataset, micro_tokens, seed, limit, progress)
    judgement = judge.judged(trained.task)
    return judgement if world.is_main else Judgement({})
