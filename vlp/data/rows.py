"""Features or pixels of many images in one piece of memory, as a batch wants them: made there, they need not be copied
together.

A float32 feature map of 36 regions has 300 kB; to write one costs 25 us and to copy it 50.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from ctypes import addressof, c_char
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_SPARE = 1.25
"""A piece is made so much larger than the last batch was: batches differ in size."""


class _Own(threading.local):
    """What each thread has for itself."""

    def __init__(self, dtype: DTypeLike) -> None:
        self.none: NDArray[Any] = np.empty(0, dtype)
        self.piece = self.none
        self.end = 0
        """Numbers of the piece that are taken."""
        self.batch = 0
        """Numbers taken since the last batch ended."""
        self.size = 0
        """Numbers of the next piece, at least."""


class Rows:
    """Hands out rows one after the other. Each thread has a piece of its own; a copy begins anew."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._dtype = dtype
        self._own = _Own(dtype)

    def take(self, *shape: int) -> NDArray[Any]:
        """Rows to be written, of this shape, behind those that were taken last."""
        own, needed = self._own, math.prod(shape)
        if own.end + needed > len(own.piece):
            own.size = max(needed, own.size)
            own.piece, own.end = np.empty(own.size, self._dtype), 0
        first, own.end = own.end, own.end + needed
        own.batch += needed
        return own.piece[first : own.end].reshape(shape)

    def end(self) -> None:
        """A batch ends here: the next has a piece of its own, so that no batch keeps another's memory."""
        own = self._own
        own.size, own.batch = int(_SPARE * own.batch), 0
        own.piece, own.end = own.none, 0

    def __reduce__(self) -> tuple[type[Rows], tuple[DTypeLike]]:
        return Rows, (self._dtype,)


def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays of one type and width one after the other: where they lie so already, that piece itself, else a copy."""
    arrays = [array for array in arrays if len(array)] or arrays[:1]  # no rows lie nowhere
    first = arrays[0]
    piece = first.base
    if not isinstance(piece, np.ndarray) or piece.dtype != first.dtype or not piece.flags.c_contiguous:
        return np.concatenate(arrays)
    width = first.shape[1:]
    if not all(each.base is piece and each.flags.c_contiguous and each.shape[1:] == width for each in arrays):
        return np.concatenate(arrays)
    starts = [_address(each) for each in arrays]
    ends = [start + each.nbytes for start, each in zip(starts, arrays, strict=True)]
    if starts[1:] != ends[:-1]:
        return np.concatenate(arrays)
    begin = (starts[0] - _address(piece)) // piece.itemsize
    flat: NDArray[Any] = piece.reshape(-1)[begin : begin + (ends[-1] - starts[0]) // piece.itemsize]
    return flat.reshape(-1, *width)


def _address(array: NDArray[Any]) -> int:
    """Where an array without gaps begins. ctypes says it in a quarter of numpy's time, but not of what is read-only."""
    if array.flags.writeable and array.size:
        return addressof(c_char.from_buffer(array.data))
    place: int = array.__array_interface__["data"][0]
    return place
