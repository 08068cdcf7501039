"""A folder of features, read again: row by row, or whole columns of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.build import checksum_of
from vlp.errors import ConfigError, DataError
from vlp.features.files import read
from vlp.features.manifest import MANIFEST, PartEntry, read_manifest
from vlp.features.rows import Row

__all__ = ["Features", "Row"]


class Features:
    """What `vlp extract` wrote, whatever its format. Reads a file at a time, and compares its checksum at first.

        for row in Features("features"):
            row.id, row.words, row.arrays["pooled"]

    Raises:
        DataError: the folder holds no finished extraction; while reading, a file is missing or damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._layout = self.manifest.layout
        self._sound: set[str] = set()

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def names(self) -> list[str]:
        """Of the features."""
        return list(self.manifest.what)

    def __iter__(self) -> Iterator[Row]:
        for part in self.manifest.parts:
            path, rows = self.folder / part.file, 0
            self._check(part, path)
            for row in read(self.manifest.format, path, self._layout):
                rows += 1
                yield row
            if rows != part.rows:
                raise DataError(
                    f"{path}: holds {rows} rows where {MANIFEST} says {part.rows}; remove {path.parent} and extract "
                    "again"
                )

    def _check(self, part: PartEntry, path: Path) -> None:
        """Numbers that have changed are numbers still, and only the checksum tells."""
        if part.checksum is None or part.file in self._sound or not path.is_file():
            return
        if checksum_of(path) != part.checksum:
            raise DataError(
                f"{path}: is damaged (it has another checksum than when it was written); remove it and give the same "
                "`vlp extract` command again"
            )
        self._sound.add(part.file)

    def ids(self) -> list[str]:
        """The examples' ids, in order."""
        return [row.id for row in self]

    def array(self, name: str) -> NDArray[Any]:
        """A column of numbers [rows] or vectors [rows, H], in memory.

        Raises:
            ConfigError: there is no such column, or its rows differ in shape.
        """
        known = {one.name: one.form for one in self._layout.features}
        if known.get(name) not in ("number", "vector"):
            fitting = [known_name for known_name, form in known.items() if form in ("number", "vector")]
            raise ConfigError(
                f"{self.folder}: has no numbers or vectors '{name}' (it has: {', '.join(fitting) or '-'})"
            )
        rows = [row.arrays[name] for row in self]
        empty: Sequence[int] = (0, self._layout.widths[name]) if known[name] == "vector" else (0,)
        return np.stack(rows) if rows else np.zeros(empty, self._layout.numpy)
