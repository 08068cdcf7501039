"""A step at ZeRO stage 0 in fp32 and bf16: the gradients' mean over ranks, their norm, and the optimizer.

DeepSpeed has nothing to do there in fp32, and would apply a NaN. In bf16 it adds micro-batches up in bf16, and passes
over all gradients for a check, for the norm, for a copy and for a factor, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlp.train.zero import BUCKET

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

    from vlp.distributed import World


class DataParallel:
    """Steps the weights of a module that every rank holds whole.

    Below fp32 the module keeps rounded copies, for forward and backward; the optimizer steps fp32 masters, which get
    the sum of the micro-batches' gradients in fp32.

    Args:
        module: in fp32; its parameters become `dtype`, as DeepSpeed's do at the other stages, and buffers stay.
        optimizer: over the module's trained parameters, before its first step; it gets the masters in their place.
        dtype: of forward and backward.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, dtype: torch.dtype, world: World) -> None:
        self._optimizer = optimizer
        self._world = world
        self.masters: dict[nn.Parameter, Tensor] = {}
        """The fp32 tensor behind each trained parameter; in fp32 the parameter itself."""
        self._rounded = dtype != torch.float32
        self._hooks: list[RemovableHandle] = []
        for parameter in module.parameters():
            if self._rounded and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
            if parameter.requires_grad:
                self.masters[parameter] = parameter.detach().float() if self._rounded else parameter
        if self._rounded:
            self._hooks = [each.register_post_accumulate_grad_hook(self._add) for each in self.masters]
        for group in optimizer.param_groups:
            group["params"] = [self.masters[parameter] for parameter in group["params"]]

    def _add(self, parameter: Tensor) -> None:
        """Move a gradient of this micro-batch to the master, while it is in the processor's cache."""
        master, gradient = self.masters[parameter], parameter.grad  # type: ignore[index]
        parameter.grad = None
        assert gradient is not None
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad += gradient

    def step(self, clip_norm: float | None) -> tuple[float, bool]:
        """Apply the gradients unless they are not finite, and let go of them; collective.

        Args:
            clip_norm: norm of all gradients above which they are scaled down.
        Returns:
            Their norm before, and whether they were applied.
        """
        if self._world.size > 1:
            _average([_gradient(master) for master in self.masters.values()], self._world.size)
        gradients = [master.grad for master in self.masters.values() if master.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        norm = float(total)
        applied = math.isfinite(norm)
        if applied:
            if clip_norm is not None and norm > clip_norm:
                nn.utils.clip_grads_with_norm_(self.masters.values(), clip_norm, total)
            self._optimizer.step()
            if self._rounded:
                for parameter, master in self.masters.items():
                    parameter.data.copy_(master)
        for master in self.masters.values():
            master.grad = None
        return norm, applied

    def close(self) -> None:
        """Leave the module's gradients to others."""
        for hook in self._hooks:
            hook.remove()


def _gradient(master: Tensor) -> Tensor:
    """Zero where there is none: ranks send the same tensors, whatever each has had to do."""
    if master.grad is None:
        master.grad = torch.zeros_like(master)
    return master.grad


def _average(gradients: Iterable[Tensor], ranks: int) -> None:
    """Replace gradients by their means over ranks, a bucket at a time."""
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).div_(ranks)
        torch.distributed.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of up to `BUCKET` numbers, or of a single one that has more."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
