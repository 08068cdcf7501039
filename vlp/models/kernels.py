"""Which kernels a tensor's device has, and fp32 in place of those that a CPU lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_STOOD_FOR: ContextVar[str] = ContextVar("_STOOD_FOR", default="meta")


def kind_of(x: Tensor) -> str:
    """`cpu`, `cuda`, ...; of a tensor on the meta device that which it stands for."""
    return _STOOD_FOR.get() if x.device.type == "meta" else x.device.type


def product_type(x: Tensor) -> torch.dtype:
    """The type in which to multiply x: its own, but on a CPU without products of its type fp32, which is then 7 times
    as fast (bf16 on AVX2, two cores of an AMD EPYC, Zen 3: 17 GFLOP/s and 120) and no less exact."""
    slow = x.dtype in _SLOW and kind_of(x) == "cpu"
    return torch.float32 if slow else x.dtype


def _without_products() -> frozenset[torch.dtype]:
    """Types below fp32 that this CPU has no products of."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset({torch.bfloat16, torch.float16})
    has = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, here in has.items() if not here)


_SLOW = _without_products()


def wide_products(x: Tensor) -> AbstractContextManager[object]:
    """Within it, what is not ours multiplies x, and what it makes of it, by `product_type`, and keeps for backward no
    more than it would have.

    Left to torch are what a network runs again in backward, to keep less, and functions with a backward of their own.
    """
    return nullcontext() if product_type(x) == x.dtype else _WideProducts()


class _WideProducts(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called for each function of torch."""
        given = (tuple(args), dict(kwargs or {}))
        made = _Wide()
        args, kwargs = tree_map(made, given) if func in _PRODUCTS else given
        if not made.copies:
            return func(*args, **kwargs)
        with saved_tensors_hooks(made.narrow, lambda kept: kept[0].to(kept[1])):
            return func(*args, **kwargs).to(made.given)


class _Wide:
    """The factors of a product in its `product_type`, and what autograd is to keep of them: what they were made of."""

    def __init__(self) -> None:
        self.copies: set[int] = set()
        self.given: torch.dtype | None = None

    def __call__(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or product_type(x) == x.dtype:
            return x
        self.given = x.dtype
        wide = x.to(product_type(x))
        self.copies.add(wide.untyped_storage().data_ptr())
        return wide

    def narrow(self, kept: Tensor) -> tuple[Tensor, torch.dtype]:
        own = kept.untyped_storage().data_ptr() in self.copies
        return kept.to(self.given) if own else kept, kept.dtype


_PRODUCTS = frozenset(
    {F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention, torch.einsum}
    | {torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm}
    | {Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm}
)


@contextmanager
def standing_for(device: str) -> Iterator[None]:
    """Within it, tensors on the meta device take the way of those on another, to count what that costs."""
    token = _STOOD_FOR.set(device)
    try:
        yield
    finally:
        _STOOD_FOR.reset(token)
