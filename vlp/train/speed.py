"""How fast a run is, and how near to what its machine can do."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING

import torch

from vlp.distributed import World
from vlp.train.hooks import Hook

if TYPE_CHECKING:
    from vlp.train.engine import StepResult
    from vlp.types import Step

_GIB = 1 << 30


class Speed(Hook):
    """Adds times, rates, padding and memory to a step's record.

    Wall time counts from the end of the step before, so that it holds all a step costs: waiting for data, computing,
    and what the loop does besides.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._ended = self._started = time.perf_counter()

    def before(self, step: int) -> None:
        self._started = time.perf_counter()

    def after(self, step: Step, result: StepResult, record: dict[str, float]) -> None:
        now = time.perf_counter()
        seconds = max(now - self._ended, 1e-9)
        record |= {
            "examples_per_second": result.examples / seconds,
            "tokens_per_second": result.tokens / seconds,
            "padding": result.padding,
            "data_wait": self._started - self._ended,
            "step_seconds": seconds,
            "micro_batches": result.micro_batches,
            "memory_gib": peak_memory(self._world.device) / _GIB,
        }
        self._ended = now

    def restart(self) -> None:
        """Leave out what happened since the last step, an evaluation or a checkpoint."""
        self._ended = time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has had: of GPU memory where there is a GPU, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
