"""Which kernels a tensor's device has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_STOOD_FOR: ContextVar[str] = ContextVar("_STOOD_FOR", default="meta")


def kind_of(x: Tensor) -> str:
    """`cpu`, `cuda`, ...; of a tensor on the meta device that which it stands for."""
    return _STOOD_FOR.get() if x.device.type == "meta" else x.device.type


@contextmanager
def standing_for(device: str) -> Iterator[None]:
    """Within it, tensors on the meta device take the way of those on another, to count what that costs."""
    token = _STOOD_FOR.set(device)
    try:
        yield
    finally:
        _STOOD_FOR.reset(token)
