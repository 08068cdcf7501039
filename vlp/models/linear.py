"""Linear layers. A CPU's large products in fp32 are oneDNN's where it is faster than MKL, which torch itself calls.

2048 rows on two cores, GFLOP/s of MKL and oneDNN for 768 to 3072 numbers and for 3072 to 768. AMD EPYC, Zen 4, AVX-512:
forward 177 and 209, 191 and 214; gradient of the rows 198 and 209, 180 and 213; of the weight 197 and 183, 188 and 201.
Zen 3, AVX2: forward 100 and 110, 107 and 127; of the rows 111 and 88, 116 and 56; of the weight 98 and 77, 113 and 50.

Shape suffixes: N rows; I width that comes in; O width that goes out.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vlp.models.kernels import product_type

_FEWEST = 1 << 28
"""Multiplications from which it is worth it: 456 rows, 768 to 768. A new number of rows costs a new kernel, 0.7 ms."""
_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
)
_TURNS = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Whether oneDNN is the faster one where the columns of a factor lie together, too."""

# oneDNN keeps the kernels of the last 1024 sizes, about a megabyte each, and each batch has sizes of its own: 20 to 60,
# most of which every block uses. A tiny dual-stream run in bf16 came from 1.0 GB to 2.0 in 200 steps; by 128 kernels it
# stays at 1.1 for at most a twentieth more CPU time, by 64 it takes an eighth more. Both are read at oneDNN's first
# product, and a process's children have them too.
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

_OURS = (torch.float32, torch.bfloat16, torch.float16)


class Linear(nn.Linear):
    """torch's linear layer by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x times the weight's transpose plus the bias, [..., I] to [..., O]; on a CPU, up to fp32, differentiable once."""
    ours = x.device.type == "cpu" and x.dtype == weight_OI.dtype and x.dtype in _OURS
    if ours and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()):
        # Whatever its size, and whatever this CPU can do: the order of gradients must be that of all ranks, on which
        # ZeRO relies at stage 2.
        return _Linear.apply(x, weight_OI, bias_O)  # type: ignore[no-any-return]
    return F.linear(x, weight_OI, bias_O)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.widths = weight_OI.shape
        ctx.save_for_backward(x if wanted[1] else None, weight_OI if wanted[0] else None)
        kind = product_type(x)
        bias_O = None if bias_O is None else bias_O.to(kind)
        return _product(x.to(kind), weight_OI.to(kind), bias_O).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        wanted, (out, width) = ctx.needs_input_grad, ctx.widths
        given, kind = grads[0].dtype, product_type(grads[0])
        grad = grads[0].to(kind)
        grad_NO = grad.reshape(-1, out)
        return (
            _product(grad, weight_OI.to(kind).t()).to(given) if wanted[0] else None,
            _of_weight(grad_NO, x.to(kind).reshape(-1, width)).to(given) if wanted[1] else None,
            grad_NO.sum(0).to(given) if wanted[2] else None,
        )


def _of_weight(grad_NO: Tensor, x_NI: Tensor) -> Tensor:
    """[O, I]; by the library that is faster at its shape."""
    wide = x_NI.shape[1] > grad_NO.shape[1]
    return _product(grad_NO.t(), x_NI.t()) if wide else grad_NO.t() @ x_NI


def _product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    large = x.dtype == torch.float32 and x.numel() * len(weight_OI) >= _FEWEST
    fast = _HAS_ONEDNN and (_TURNS or (x.is_contiguous() and weight_OI.is_contiguous()))
    return (_onednn if fast and large else F.linear)(x, weight_OI, bias_O)


def _onednn(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")  # type: ignore[no-any-return]
