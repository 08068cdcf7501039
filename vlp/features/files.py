"""A part's rows as a file, and back: parquet, npz, safetensors or a tar. The same rows give the same bytes.

What lies where in each is in docs/features.md, and tested by readers who know that page alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from vlp.errors import DataError
from vlp.features import parquet, stacked, tars
from vlp.features.rows import Layout, Row

Format = Literal["parquet", "npz", "safetensors", "webdataset"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, str] = {
    "parquet": ".parquet",
    "npz": ".npz",
    "safetensors": ".safetensors",
    "webdataset": ".tar",
}
_MOST_SAID = 200
"""Characters of a library's complaint."""

_WRITERS: dict[Format, Callable[[Path, Sequence[Row], Layout], None]] = {
    "parquet": parquet.write,
    "npz": stacked.write_npz,
    "safetensors": stacked.write_safetensors,
    "webdataset": tars.write,
}
_READERS: dict[Format, Callable[[Path, Layout], Iterator[Row]]] = {
    "parquet": parquet.read,
    "npz": stacked.read_npz,
    "safetensors": stacked.read_safetensors,
    "webdataset": tars.read,
}


def write(format: Format, path: Path, rows: Sequence[Row], layout: Layout) -> None:
    """Write a file of features; the caller puts it in its place."""
    _WRITERS[format](path, rows, layout)


def read(format: Format, path: Path, layout: Layout) -> Iterator[Row]:
    """The rows of a file, in their order; numbers as they were written (bf16 as float32). Nothing is unpickled.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    try:
        yield from _READERS[format](path, layout)
    except ImportError:
        raise
    except Exception as error:  # five libraries read here, and raise whatever they stumble over
        reason = "it is missing" if isinstance(error, FileNotFoundError) else _short(error)
        raise DataError(
            f"{path}: cannot be read as {format} features ({reason}); remove it and extract again"
        ) from None


def _short(error: Exception) -> str:
    first = str(error).strip().split("\n")[0] or type(error).__name__
    return first if len(first) <= _MOST_SAID else f"{first[:_MOST_SAID]}..."
