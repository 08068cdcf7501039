"""The best matrix product of a machine: what a share of the limit is a share of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.benchmarks.measuring import wait_for

SHAPES = {
    "cpu": ((1024, 1024, 1024), (1536, 1536, 1536), (2048, 768, 3072), (2048, 3072, 768), (3072, 2048, 768)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 1024, 4096), (16384, 4096, 1024), (4096, 16384, 1024)),
}
"""Rows, inner width and columns that are tried: large squares, and what a base model multiplies."""
REPEATS = 5
LONG = 1.0
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
        """Operations per second over about a second, in which whatever else a machine does gets in the way, as it does
        in a step."""
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


def _seconds(call: Callable[[], Tensor], device: str) -> float:
    wait_for(device)
    begun = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - begun
