"""Records of tensors on their way from a worker to its parent, in shared memory that is used again and again.

A worker's result crosses as one buffer, not one per tensor: a step has a hundred small tensors, and each would cost a
file descriptor and a system call. And the buffer is not made anew: the kernel takes 7 ms to clear 10 MB of fresh shared
memory, where writing into what is there takes 1.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import weakref
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 64
_SPARE = 1.25
"""A buffer is made so much larger than needed: steps differ in size, and the next shall fit too."""

Key = tuple[int, int]
"""Which buffer: the process that made it, and its number there."""
_Layout = list[tuple[torch.dtype, torch.Size, tuple[int, ...], int]]
"""Of each tensor: type, shape, strides, and the byte where it begins."""

_NUMBERS = itertools.count()
_KNOWN: dict[Key, Tensor] = {}
"""The parent's buffers: each is sent along with its first parcel only."""


class Pool:
    """A worker's buffers. The first byte of each says whether its parcel is still in use; the parent clears it."""

    def __init__(self) -> None:
        self._buffers: dict[Key, Tensor] = {}
        self.dropped: list[Key] = []
        """Buffers that were given up since the last parcel."""

    def __len__(self) -> int:
        return len(self._buffers)

    def take(self, size: int) -> tuple[Key, Tensor, bool]:
        """A free buffer for so many bytes behind its first `_ALIGNMENT`, and whether it is new."""
        free = sorted((len(buffer), key) for key, buffer in self._buffers.items() if not buffer.numpy()[0])
        fitting = [key for length, key in free if length >= size + _ALIGNMENT]
        if fitting:
            key = fitting[0]
        else:
            for _, small in free:
                del self._buffers[small]
                self.dropped.append(small)
            key = os.getpid(), next(_NUMBERS)
            length = int((size + _ALIGNMENT) * _SPARE)
            shared: torch.UntypedStorage = torch.UntypedStorage._new_shared(length)  # type: ignore[no-untyped-call]
            self._buffers[key] = torch.empty(0, dtype=torch.uint8).set_(shared)
        self._buffers[key].numpy()[0] = 1
        return key, self._buffers[key], not fitting


class Parcel:
    """Any record of tensors as bytes and one buffer."""

    def __init__(self, data: bytes, layout: _Layout, size: int, buffer: Tensor) -> None:
        self._data, self._layout, self._size, self._buffer = data, layout, size, buffer
        self._key: Key | None = None
        self._new = False
        self._dropped: list[Key] = []

    @classmethod
    def of(cls, value: Any, pool: Pool) -> Parcel:
        """Pack a value; its tensors are copied once, into shared memory."""
        file = io.BytesIO()
        pickler = _Pickler(file, pickle.HIGHEST_PROTOCOL)
        pickler.dump(value)
        layout, size = [], 0
        for tensor in pickler.tensors:
            layout.append((tensor.dtype, tensor.shape, _strides(tensor), size))
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        key, buffer, new = pool.take(size)
        for view, tensor in zip(_views(buffer[_ALIGNMENT:], layout), pickler.tensors, strict=True):
            view.copy_(tensor)
        parcel = cls(file.getvalue(), layout, size, buffer)
        parcel._key, parcel._new = key, new
        parcel._dropped, pool.dropped = pool.dropped, []
        return parcel

    def open(self) -> Any:
        """The value, once; its tensors are views of the buffer, which is free again when the last of them is gone."""
        return _Unpickler(io.BytesIO(self._data), _views(self._content(), self._layout)).load()

    def pin_memory(self) -> Parcel:
        """A copy in page-locked memory; called by the loader's pinning thread."""
        return Parcel(self._data, self._layout, self._size, self._content().pin_memory())

    def _content(self) -> Tensor:
        if self._key is None:
            return self._buffer
        # Torch keeps this array for as long as any tensor over it lives.
        array: NDArray[np.uint8] = self._buffer.numpy()[_ALIGNMENT : _ALIGNMENT + self._size]
        weakref.finalize(array, _free, self._buffer.numpy()[:1]).atexit = False
        return torch.from_numpy(array)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffer": self._buffer if self._new else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        assert self._key is not None, "a pinned parcel stays where it is"
        if self._new:
            _KNOWN[self._key] = self._buffer
        for key in self._dropped:
            _KNOWN.pop(key, None)
        self._buffer = _KNOWN[self._key]


def forget(processes: Collection[int]) -> None:
    """Give up the buffers of workers that are gone."""
    for key in [key for key in _KNOWN if key[0] in processes]:
        del _KNOWN[key]


def _free(flag: NDArray[np.uint8]) -> None:
    flag[0] = 0


def _views(buffer: Tensor, layout: _Layout) -> list[Tensor]:
    return [
        buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).as_strided(shape, strides)
        for dtype, shape, strides, start in layout
    ]


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's own, so that pixels keep their colours last; without gaps where it has some."""
    return tensor.stride() if tensor.is_contiguous() else torch.empty_like(tensor, device="meta").stride()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    """Reads what a worker of this process wrote, nothing from outside."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: Any) -> Tensor:
        return self._tensors[int(number)]
