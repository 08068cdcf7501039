"""Rows of features as parquet: a column per feature, of numbers, of lists, or of lists of lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import ArrayFault
from vlp.features.kinds import Feature
from vlp.features.rows import TEXTS, Arrays, Layout, Row, column_of, rows_of, texts_of

_COLUMNS = {"ids": "id", "keys": "key", "images": "image.name", "words": "words"}
"""What the texts are called here; `image` is a feature."""
_ROWS = 256
"""That are read at once."""


def write(path: Path, rows: Sequence[Row], layout: Layout) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = pa.float16() if layout.dtype == "fp16" else pa.float32()
    texts = texts_of(rows)
    columns: dict[str, Any] = {_COLUMNS[name]: pa.array(texts[name], pa.string()) for name in TEXTS}
    for one in layout.features:
        array, lengths = column_of(one, rows, layout)
        flat = pa.array(array.ravel(), number)
        if one.form == "vector":
            flat = pa.ListArray.from_arrays(_offsets(np.full(len(rows), layout.widths[one.name])), flat)
        elif one.form == "map":
            assert lengths is not None
            flat = pa.ListArray.from_arrays(_offsets(layout.widths[one.name] * lengths**2), flat)
        elif one.form == "tokens":
            assert lengths is not None
            inner = pa.ListArray.from_arrays(_offsets(np.full(len(array), layout.widths[one.name])), flat)
            flat = pa.ListArray.from_arrays(_offsets(lengths), inner)
        columns[one.name] = flat
    pq.write_table(pa.table(columns), path)


def _offsets(lengths: NDArray[Any]) -> Any:
    import pyarrow as pa

    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def read(path: Path, layout: Layout) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = [*_COLUMNS.values(), *(one.name for one in layout.features)]
        missing = [name for name in names if name not in file.schema_arrow.names]
        if missing:
            raise ArrayFault(f"has no column '{missing[0]}'")
        for batch in file.iter_batches(_ROWS, columns=names):
            columns: Arrays = {}
            for one in layout.features:
                columns |= _read_column(one, batch.column(one.name), layout.widths[one.name])
            texts = {name: batch.column(_COLUMNS[name]).to_pylist() for name in TEXTS}
            yield from rows_of(texts, columns, layout)


def _read_column(one: Feature, column: Any, width: int) -> Arrays:
    """The numbers of a column, and its lengths where rows differ in theirs."""
    if one.form == "number":
        return {one.name: _numbers(one, column)}
    flat, lengths = _unfolded(one, column)
    if one.form == "map":
        sides = np.sqrt(lengths // width).round().astype(np.int64)
        if (width * sides**2 != lengths).any():
            raise ArrayFault(f"'{one.name}' has lists that are no {width} square maps")
        return {one.name: _numbers(one, flat), f"{one.name}.lengths": sides}
    if one.form == "tokens":
        found = {f"{one.name}.lengths": lengths}
        flat, lengths = _unfolded(one, flat)
    else:
        found = {}
    if (lengths != width).any():
        raise ArrayFault(f"'{one.name}' has lists that are not {width} numbers long")
    return {one.name: _numbers(one, flat).reshape(-1, width), **found}


def _unfolded(one: Feature, column: Any) -> tuple[Any, NDArray[np.int64]]:
    """What the lists of a column hold, and how much each."""
    import pyarrow as pa

    if not pa.types.is_list(column.type) or column.null_count:
        raise ArrayFault(f"'{one.name}' is {column.type}, or has rows without a list")
    return column.flatten(), np.diff(column.offsets.to_numpy()).astype(np.int64)


def _numbers(one: Feature, column: Any) -> NDArray[Any]:
    import pyarrow as pa

    if not pa.types.is_floating(column.type) or column.null_count:
        raise ArrayFault(f"'{one.name}' holds {column.type}, or nothing in some places")
    return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
