"""A step at ZeRO stage 0 in fp32 and bf16: the gradients' mean over ranks, their norm, and the optimizer.

DeepSpeed has nothing to do there in fp32, and would apply a NaN. In bf16 it adds micro-batches up in bf16, and passes
over all gradients for a check, for the norm, for a copy and for a factor, one after the other.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vlp.distributed import sum_over_ranks

if TYPE_CHECKING:
    from torch.optim import Optimizer

T = TypeVar("T")
TOGETHER = 10_000_000
"""Weights that are stepped at a time on a CPU, for memory's sake: their gradients are in fp32 then. A GPU steps all at
once, as each part takes the CPU a millisecond or two."""


class _Trained(NamedTuple):
    parameter: nn.Parameter
    master: Tensor
    gradient: Tensor


class DataParallel:
    """Steps the weights of a module that every rank holds whole.

    Below fp32 the module keeps rounded copies, for forward and backward. The optimizer steps fp32 masters, and where
    gradients of several micro-batches or ranks are added up, they are so in fp32.

    Args:
        module: in fp32; its parameters become `dtype`, as DeepSpeed's do at the other stages, and buffers stay.
        optimizer: over the module's trained parameters, before its first step; it gets the masters in their place.
        dtype: of forward and backward.
        ranks: of the run.
        bucket: numbers that are added up over ranks at a time.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, dtype: torch.dtype, ranks: int, bucket: int) -> None:
        self._optimizer = optimizer
        self._ranks = ranks
        self._bucket = bucket
        self._rounded = dtype != torch.float32
        self.masters: dict[nn.Parameter, Tensor] = {}
        """The fp32 tensor behind each trained parameter; in fp32 the parameter itself."""
        for parameter in module.parameters():
            if self._rounded and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
            if parameter.requires_grad:
                self.masters[parameter] = parameter.detach().float() if self._rounded else parameter
        for group in optimizer.param_groups:
            group["params"] = [self.masters[parameter] for parameter in group["params"]]

    def accumulate(self) -> None:
        """Add the gradients of a micro-batch to those of the others before it, in fp32."""
        if not self._rounded:
            return  # backward has
        for parameter, master in self.masters.items():
            if parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def step(self, clip_norm: float | None) -> tuple[float, bool]:
        """Apply the gradients unless they are not finite, and let go of them; collective.

        Args:
            clip_norm: norm of all gradients above which they are scaled down.
        Returns:
            Their norm before, and whether they were applied.
        """
        if self._ranks > 1:
            self.accumulate()
            self._average()
        trained = self._taken()
        norm = _norm([each.gradient for each in trained])
        applied = math.isfinite(norm)
        if applied:
            self._apply(trained, clip_norm / norm if clip_norm is not None and norm > clip_norm else 1.0)
        return norm, applied

    def _taken(self) -> list[_Trained]:
        """All that have a gradient, which is no longer theirs: the optimizer steps what has one."""
        taken = []
        for parameter, master in self.masters.items():
            gradient = parameter.grad if master.grad is None else master.grad
            parameter.grad = master.grad = None
            if gradient is not None:
                taken.append(_Trained(parameter, master, gradient))
        return taken

    def _apply(self, trained: Sequence[_Trained], factor: float) -> None:
        most = TOGETHER if trained[0].gradient.device.type == "cpu" else sys.maxsize
        for some in _parts(trained, [each.gradient.numel() for each in trained], most):
            parameters, masters, gradients = zip(*some, strict=True)
            for master, gradient in zip(masters, _in_fp32(gradients), strict=True):
                master.grad = gradient
            if factor != 1:
                torch._foreach_mul_([master.grad for master in masters], factor)
            self._optimizer.step()
            for master in masters:
                master.grad = None
            if self._rounded:
                torch._foreach_copy_([parameter.data for parameter in parameters], masters)

    def _average(self) -> None:
        """Replace gradients by their means over ranks."""
        gradients = [_gradient(master) for master in self.masters.values()]
        for some in _parts(gradients, [gradient.numel() for gradient in gradients], self._bucket):
            if len(some) == 1:
                sum_over_ranks(some[0].div_(self._ranks))
                continue
            flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in some]).div_(self._ranks))
            start = 0
            for gradient in some:
                gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()


def _gradient(master: Tensor) -> Tensor:
    """Zero where there is none: ranks send the same tensors, whatever each has had to do."""
    if master.grad is None:
        master.grad = torch.zeros_like(master)
    return master.grad


def _in_fp32(gradients: tuple[Tensor, ...]) -> Sequence[Tensor]:
    if gradients[0].dtype == torch.float32:
        return gradients
    made = [torch.empty_like(gradient, dtype=torch.float32) for gradient in gradients]
    torch._foreach_copy_(made, gradients)
    return made


def _norm(gradients: list[Tensor]) -> float:
    """Of all of them together; on a CPU by way of their rows' norms.

    There torch adds a whole tensor's squares up one after the other in fp32, which loses the fourth digit of a table of
    words, and makes bf16 fp32 beforehand, which takes three times as long. On a GPU it has one kernel for all.
    """
    if gradients[0].device.type == "cpu":
        norms = torch.cat([torch.linalg.vector_norm(gradient, dim=-1).flatten().float() for gradient in gradients])
    else:
        norms = torch.stack(torch._foreach_norm(gradients, 2, torch.float32))
    return float(torch.linalg.vector_norm(norms))


def _parts(items: Sequence[T], sizes: Sequence[int], most: int) -> Iterator[Sequence[T]]:
    """Runs of items whose sizes add up to `most` at most, or of a single one that is larger."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            yield items[start:index]
            start, total = index, 0
        total += size
    if start < len(items):
        yield items[start:]
