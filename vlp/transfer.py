"""Copies of records that hold tensors, on another device or in pinned memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import device

R = TypeVar("R")


def moved(record: R, where: device | str, dtype: Any = None) -> R:
    """A copy on a device.

    Args:
        dtype: what floating tensors become, but for those of a record that says `keeps_type`.
    """
    import torch

    copy: Any
    if isinstance(record, torch.Tensor):
        cast = dtype if record.is_floating_point() and dtype is not None else None
        copy = record.to(device=where, dtype=cast, non_blocking=True)
    else:
        kept = None if getattr(record, "keeps_type", False) else dtype
        copy = _mapped(record, lambda part: moved(part, where, kept))
    result: R = copy
    return result


def pinned(record: R) -> R:
    """A copy in pinned memory, from where a GPU fetches while the CPU goes on."""
    import torch

    copy: Any = record.pin_memory() if isinstance(record, torch.Tensor) else _mapped(record, pinned)
    result: R = copy
    return result


def _mapped(record: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a dict or a dataclass with `change` applied to all that it holds; other values as they are."""
    if isinstance(record, dict):
        return {name: change(value) for name, value in record.items()}
    if is_dataclass(record) and not isinstance(record, type):
        return replace(record, **{part.name: change(getattr(record, part.name)) for part in fields(record)})
    return record
