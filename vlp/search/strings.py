"""A list of texts on the disk, of which any one is read without the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np


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
    """What a `StringsWriter` wrote, mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._ends = np.load(path.with_name(f"{path.name}.ends.npy"), mmap_mode="r", allow_pickle=False)
        file = path.with_name(f"{path.name}.bytes")
        self._bytes = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = int(self._ends[number - 1]) if number else 0
        return self._bytes[start : int(self._ends[number])].tobytes().decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))
