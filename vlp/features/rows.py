"""Rows of features, and the same as columns: what every file of features holds (docs/features.md has the layout).

Tokens of all rows stand one after the other, and `<name>.lengths` says how many are whose; maps stand there flat, with
their sides for lengths.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import ArrayFault
from vlp.features.kinds import Feature

Dtype = Literal["fp32", "fp16", "bf16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Arrays = dict[str, NDArray[Any]]
TEXTS = ("ids", "keys", "images", "words")
"""What a row has beside its features, as columns."""


@dataclass(frozen=True)
class Row:
    """The features of one example."""

    id: str
    key: str
    """Of its sample: several texts of one photo may share it."""
    image: str
    """What the source calls its image: `shard/key`, or a path as it stands in the table or folder; empty without."""
    words: str
    """Its text, in words."""
    arrays: Arrays
    """By name: a number [], a vector [H], tokens [T, H], or maps [S, J, J]."""


@dataclass(frozen=True)
class Layout:
    """What the rows of a file look like; the same for all files of a folder."""

    features: tuple[Feature, ...]
    widths: Mapping[str, int]
    dtype: Dtype = "fp32"

    @property
    def numpy(self) -> Any:
        """The type of numbers in arrays; bf16, which numpy lacks, is fp32 until it is written."""
        return np.float16 if self.dtype == "fp16" else np.float32

    def shape(self, feature: Feature) -> list[int | str]:
        """Of one example's array; T, M and J are its text tokens, its image tokens and both."""
        width = self.widths[feature.name]
        side = "T" if feature.side == "text" else "M"
        shapes: dict[str, list[int | str]] = {
            "number": [],
            "vector": [width],
            "tokens": [side, width],
            "map": [width, "J", "J"],
        }
        return shapes[feature.form]


def texts_of(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The columns of `TEXTS`."""
    columns = ([row.id for row in rows], [row.key for row in rows], [row.image for row in rows])
    return dict(zip(TEXTS, (*columns, [row.words for row in rows]), strict=True))


def columns_of(rows: Sequence[Row], layout: Layout) -> Arrays:
    """The columns of features, and of lengths where rows differ in theirs."""
    found: Arrays = {}
    for one in layout.features:
        found[one.name], lengths = column_of(one, rows, layout)
        if lengths is not None:
            found[f"{one.name}.lengths"] = lengths
    return found


def column_of(one: Feature, rows: Sequence[Row], layout: Layout) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """A feature of all rows as one array, and the length of each row's own where rows differ."""
    width = layout.widths[one.name]
    arrays = [np.asarray(row.arrays[one.name], layout.numpy) for row in rows]
    if one.form == "number":
        return np.array(arrays, layout.numpy), None
    if one.form == "vector":
        return np.stack([np.zeros(width, layout.numpy), *arrays])[1:], None
    lengths = np.array([array.shape[-1] if one.form == "map" else len(array) for array in arrays], np.int64)
    if one.form == "map":
        return np.concatenate([np.zeros(0, layout.numpy), *(array.ravel() for array in arrays)]), lengths
    return np.concatenate([np.zeros((0, width), layout.numpy), *arrays]), lengths


def rows_of(texts: Mapping[str, Sequence[str]], columns: Mapping[str, NDArray[Any]], layout: Layout) -> Iterator[Row]:
    """The rows of columns that some file gave.

    Raises:
        ArrayFault: a column is missing, or not what the layout says.
    """
    count = _count(texts)
    ends = {one.name: _ends(one, columns, count, layout) for one in layout.features}
    for number, (id, key, image, words) in enumerate(zip(*(texts[name] for name in TEXTS), strict=True)):
        arrays: Arrays = {}
        for one in layout.features:
            end = ends[one.name]
            if end is None:
                arrays[one.name] = columns[one.name][number]
                continue
            part = columns[one.name][int(end[number - 1]) if number else 0 : int(end[number])]
            arrays[one.name] = _map(part, layout.widths[one.name]) if one.form == "map" else part
        yield Row(id, key, image, words, arrays)


def _count(texts: Mapping[str, Any]) -> int:
    """Rows, by their texts."""
    for name in TEXTS:
        column = texts.get(name)
        if not isinstance(column, (list, tuple)) or not all(isinstance(text, str) for text in column):
            raise ArrayFault(f"has no '{name}', or they are no texts")
        if len(column) != len(texts["ids"]):
            raise ArrayFault(f"has {len(column)} '{name}' of {len(texts['ids'])} rows")
    return len(texts["ids"])


def _ends(one: Feature, columns: Mapping[str, NDArray[Any]], count: int, layout: Layout) -> NDArray[np.int64] | None:
    """Where each row's own part of a column ends; None where it is one entry. A column that does not fit is refused."""
    array, width = _column(one.name, columns), layout.widths[one.name]
    if array.dtype != layout.numpy:
        raise ArrayFault(f"'{one.name}' holds {array.dtype} where {layout.dtype} was written")
    ends, shape = None, (count,) if one.form == "number" else (count, width)
    if one.form in ("tokens", "map"):
        lengths = _column(f"{one.name}.lengths", columns)
        if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
            raise ArrayFault(f"'{one.name}.lengths' is not a whole number for each row")
        most = math.isqrt(len(array)) if one.form == "map" else len(array)
        if count and not (int(lengths.min()) >= 0 and int(lengths.max()) <= most):
            raise ArrayFault(f"'{one.name}.lengths' has lengths that '{one.name}' has not")
        lengths = lengths.astype(np.int64)
        ends = np.cumsum(width * lengths**2 if one.form == "map" else lengths)
        total = int(ends[-1]) if count else 0
        shape = (total,) if one.form == "map" else (total, width)
    if array.shape != shape:
        raise ArrayFault(f"'{one.name}' has the shape {array.shape} where {shape} belongs")
    return ends


def _column(name: str, columns: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if name not in columns:
        raise ArrayFault(f"has no '{name}'")
    array = columns[name]
    if array.ndim == 0:
        raise ArrayFault(f"'{name}' is one number")
    return array


def _map(flat: NDArray[Any], width: int) -> NDArray[Any]:
    side = math.isqrt(len(flat) // width)
    return flat.reshape(width, side, side)
