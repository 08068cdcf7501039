"""A list of texts on the disk, of which any one is read without the others."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlp.data.arrays import ArrayFault, npy_layout

_HEAD = 4096


class StringsWriter:
    """Writes `<path>.bytes` and `<path>.ends.npy`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.with_name(f"{path.name}.bytes").open("wb")
        self._ends: list[int] = []
        self._length = 0

    def add(self, text: str) -> None:
        self._length += self._file.write(text.encode("utf-8", "backslashreplace"))
        self._ends.append(self._length)

    def close(self) -> None:
        self._file.close()
        np.save(self._path.with_name(f"{self._path.name}.ends.npy"), np.array(self._ends, np.int64))


class Strings:
    """What a `StringsWriter` wrote, mapped into memory.

    Args:
        count: how many texts there are.
    Raises:
        ArrayFault: the files are damaged; OSError: they cannot be read.
    """

    def __init__(self, path: Path, count: int) -> None:
        file, ends = path.with_name(f"{path.name}.bytes"), path.with_name(f"{path.name}.ends.npy")
        with ends.open("rb") as opened:
            dtype, shape, _, start = npy_layout(opened.read(_HEAD))
        if dtype != np.int64 or shape != (count,) or ends.stat().st_size != start + 8 * count:
            raise ArrayFault(f"{ends.name} does not hold {count} ends")
        self._ends = np.memmap(ends, np.int64, "r", start, (count,)) if count else np.zeros(0, np.int64)
        size = file.stat().st_size
        if (self._ends[-1] if count else 0) != size:
            raise ArrayFault(f"{file.name} is not as long as {ends.name} says")
        self._bytes = np.memmap(file, np.uint8, "r") if size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = int(self._ends[number - 1]) if number else 0
        return self._bytes[start : int(self._ends[number])].tobytes().decode("utf-8", "replace")
