"""The best matrix product of a machine: the limit, and what share of it a step is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import truediv

import torch
from torch import Tensor

from tests.benchmarks.measuring import wait_for
from tests.benchmarks.results import Result, of_rounds

SHAPES = {
    "cpu": ((1024, 1024, 1024), (1536, 1536, 1536), (2048, 768, 3072), (2048, 3072, 768), (3072, 2048, 768)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 1024, 4096), (16384, 4096, 1024), (4096, 16384, 1024)),
}
"""Rows, inner width and columns that are tried: large squares, and what a base model multiplies."""
REPEATS = 5
LONG = 0.5
"""Seconds of the product one time after the other, for the rate that it keeps up."""


@dataclass(frozen=True)
class Product:
    """One matrix product."""

    name: str
    operations: int
    call: Callable[[], Tensor]
    device: str

    def rate(self) -> float:
        """Operations per second, now: of the fastest of some calls."""
        return self.operations / min(_seconds(self.call, self.device) for _ in range(REPEATS))

    def kept_up(self) -> float:
        """Operations per second over half a second, in which other programs get in the way, as they do in a step."""
        taken = 0.0
        calls = 0
        while taken < LONG:
            taken += _seconds(self.call, self.device)
            calls += 1
        return calls * self.operations / taken


def best_product(device: str, dtype: torch.dtype) -> Product:
    """The fastest of some products, each in both layouts of its right factor; on a CPU in fp32 by both of torch's
    libraries, and below it in fp32 too, as not all CPUs multiply other types. With the threads that torch has."""
    found: list[Product] = []
    for rows, inner, columns in SHAPES[device]:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right, turned = (torch.randn(shape, device=device).to(dtype) for shape in ((inner, columns), (columns, inner)))
        calls: dict[str, Callable[[], Tensor]] = {
            "A B": lambda a=left, b=right: a @ b,
            "A B^T": lambda a=left, b=turned: torch.nn.functional.linear(a, b),
        }
        if device == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
            # What torch calls in fp32 is MKL, whichever is faster.
            onednn = torch.ops.mkldnn._linear_pointwise
            calls["A B^T by oneDNN"] = lambda a=left, b=turned, by=onednn: by(a, b, None, "none", [], "")
        elif device == "cpu" and dtype != torch.float32:
            calls["A B^T in fp32"] = lambda a=left, b=turned: torch.nn.functional.linear(a.float(), b.float()).to(dtype)
        for how, call in calls.items():
            name, operations = f"{how}, {rows} x {inner} x {columns}", 2 * rows * inner * columns
            found.append(Product(name, operations, call, device))
    return max(found, key=Product.rate)


class Limit:
    """What a product does right before and right after each step: a shared machine is faster one minute and slower the
    next."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self._best: list[float] = []
        self._kept_up: list[float] = []

    def measure(self) -> None:
        self._best.append(self._product.rate())
        self._kept_up.append(self._product.kept_up())

    def share(self, name: str, work: Sequence[float], seconds: Sequence[float], at_least: float | None) -> Result:
        """How near steps came to it, by their operations and times; the rounds before them are left out."""
        best, kept_up = (_of_rounds(rates)[-len(work) :] for rates in (self._best, self._kept_up))
        done = [operations / taken for operations, taken in zip(work, seconds, strict=True)]
        figures = {
            "limit, GFLOP/s": statistics.median(best) / 1e9,
            "of": self._product.name,
            "kept up, GFLOP/s": statistics.median(kept_up) / 1e9,
            "share of that": statistics.median(map(truediv, done, kept_up)),
            "step, GFLOP": statistics.mean(work) / 1e9,
        }
        shares = list(map(truediv, done, best))
        return of_rounds(name, shares, against="the fastest matrix product", at_least=at_least, figures=figures)


def _of_rounds(rates: Sequence[float]) -> list[float]:
    """The mean of before and after."""
    return [(before + after) / 2 for before, after in zip(rates[::2], rates[1::2], strict=True)]


def _seconds(call: Callable[[], Tensor], device: str) -> float:
    wait_for(device)
    begun = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - begun
