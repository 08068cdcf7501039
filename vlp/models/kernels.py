"""Which kernels a tensor's device has, and fp32 in place of those that a CPU lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
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
    slow = x.device.type == "cpu" and x.dtype in _SLOW
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
    """Within it, a network that is not ours multiplies x, and what it makes of it, by `product_type`.

    What the network runs again in backward, to keep less, would be outside of it.
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
        args, kwargs = tuple(args), dict(kwargs or {})
        if func not in _PRODUCTS or product_type(args[0]) == args[0].dtype:
            return func(*args, **kwargs)
        given, kind = args[0].dtype, product_type(args[0])
        args, kwargs = tree_map(lambda x: x.to(kind) if _is(x, given) else x, (args, kwargs))
        return func(*args, **kwargs).to(given)


def _is(x: object, dtype: torch.dtype) -> bool:
    return isinstance(x, Tensor) and x.dtype == dtype


_PRODUCTS = frozenset(
    {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
)


@contextmanager
def standing_for(device: str) -> Iterator[None]:
    """Within it, tensors on the meta device take the way of those on another, to count what that costs."""
    token = _STOOD_FOR.set(device)
    try:
        yield
    finally:
        _STOOD_FOR.reset(token)
