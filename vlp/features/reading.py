"""A folder of features, read again: row by row, or whole columns of vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.errors import ConfigError, DataError
from vlp.features.files import Layout, Row, read
from vlp.features.folder import MANIFEST
from vlp.features.kinds import feature

__all__ = ["Features", "Row"]


class Features:
    """What `vlp extract` wrote, whatever its format. Reads a file at a time.

        for row in Features("features"):
            row.id, row.words, row.arrays["pooled"]

    Raises:
        DataError: the folder holds no finished extraction.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self._format = self.manifest["format"]
            features = tuple(feature(name) for name in self.manifest["what"])
            self._layout = Layout(features, self.manifest["widths"], self.manifest["dtype"])
            self._files = [self.folder / part["file"] for part in self.manifest["parts"]]
        except FileNotFoundError:
            raise DataError(
                f"{self.folder}: holds no finished extraction; make one with `vlp extract --out {self.folder}`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
            raise DataError(f"{path}: is not the manifest of an extraction ({error})") from None

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @property
    def names(self) -> list[str]:
        """Of the features."""
        return [one.name for one in self._layout.features]

    def __iter__(self) -> Iterator[Row]:
        for path in self._files:
            yield from read(self._format, path, self._layout)

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
