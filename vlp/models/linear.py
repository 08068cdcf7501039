"""Linear layers. A CPU's large products in fp32 are oneDNN's; torch itself calls it in bf16, and in full fp32 MKL.

2048 rows on two cores of an AMD EPYC (Zen 4), GFLOP/s of MKL and oneDNN for 768 to 3072 numbers and for 3072 to 768:
forward 177 and 209, 191 and 214; gradient of the rows 198 and 209, 180 and 213; of the weight 197 and 183, 188 and 201.

Shape suffixes: N rows; I width that comes in; O width that goes out.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_FEWEST = 1 << 28
"""Multiplications from which it is worth it: 456 rows, 768 to 768. A new number of rows costs a new kernel, 0.7 ms."""
_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
)

# oneDNN keeps the kernels of the last 1024 sizes, about a megabyte each, and each batch has sizes of its own: 20 to 60,
# most of which every block uses. A tiny dual-stream run in bf16 came from 1.0 GB to 2.0 in 200 steps; by 128 kernels it
# stays at 1.1 for at most a twentieth more CPU time, by 64 it takes an eighth more. Both are read at oneDNN's first
# product, and a process's children have them too.
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


class Linear(nn.Linear):
    """torch's linear layer by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x times the weight's transpose plus the bias, [..., I] to [..., O]; in fp32 on a CPU differentiable once."""
    exact = x.dtype == weight_OI.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if exact and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Whatever its size: the order of gradients must be that of all ranks, on which ZeRO relies at stage 2.
        return _Linear.apply(x, weight_OI, bias_O)  # type: ignore[no-any-return]
    return F.linear(x, weight_OI, bias_O)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.widths = weight_OI.shape
        ctx.save_for_backward(x if wanted[1] else None, weight_OI if wanted[0] else None)
        return _product(x, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        wanted, (out, width) = ctx.needs_input_grad, ctx.widths
        grad_NO = grads[0].reshape(-1, out)
        return (
            _product(grads[0], weight_OI.t()) if wanted[0] else None,
            _of_weight(grad_NO, x.reshape(-1, width)) if wanted[1] else None,
            grad_NO.sum(0) if wanted[2] else None,
        )


def _of_weight(grad_NO: Tensor, x_NI: Tensor) -> Tensor:
    """[O, I]; by the library that is faster at its shape."""
    wide = x_NI.shape[1] > grad_NO.shape[1]
    return _product(grad_NO.t(), x_NI.t()) if wide else grad_NO.t() @ x_NI


def _product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    large = x.numel() * len(weight_OI) >= _FEWEST
    return (_onednn if _HAS_ONEDNN and large else F.linear)(x, weight_OI, bias_O)


def _onednn(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")  # type: ignore[no-any-return]
