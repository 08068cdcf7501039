"""How fast a run is, and how near to what its machine can do."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING

import torch

from vlp.distributed import World
from vlp.models.linear import linear
from vlp.train.hooks import Hook
from vlp.train.zero import Precision

if TYPE_CHECKING:
    from vlp.models.flops import Arithmetic
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


class Utilisation(Hook):
    """Adds `mfu`, the share of the devices' peak that the model's own arithmetic reaches (Chowdhery et al. 2022, arXiv
    2204.02311, appendix B): three times a forward pass without padding; what is recomputed does not count.

    Args:
        arithmetic: of the model with its heads.
        peak: operations per second of one rank's device.
    """

    def __init__(self, arithmetic: Arithmetic, peak: float, world: World) -> None:
        self._arithmetic = arithmetic
        self._peak = peak * world.size

    def after(self, step: Step, result: StepResult, record: dict[str, float]) -> None:
        own = sum(batch.tokens for batch in step.micro_batches)
        if own == 0:  # this rank had nothing to do, so it knows nothing of the others
            return
        forward = sum(self._arithmetic.forward(batch) for batch in step.micro_batches)
        # Ranks have equal tokens but for a rounding, so one's operations tell all.
        total = 3 * forward * result.tokens / own
        record["mfu"] = total / record["step_seconds"] / self._peak


def measured_peak(device: torch.device, precision: Precision) -> float:
    """Operations per second of a large square matrix product, the best of some: what a device can really do."""
    size = 8192 if device.type == "cuda" else 1536
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    left = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        product = linear(left, left)
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has had: of GPU memory where there is a GPU, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
