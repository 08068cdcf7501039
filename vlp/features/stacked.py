"""Rows of features as npz or safetensors: an array per feature, all rows one after the other; their texts as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlp.data.arrays import ArrayFault
from vlp.data.arrays import read_npz as arrays_of
from vlp.features.rows import Layout, Row, columns_of, rows_of, texts_of

_ROWS = "rows"
_MOST_BYTES = 2 << 30
"""Of a file: a part holds 256 MB, or the one sample that has more."""


def write_npz(path: Path, rows: Sequence[Row], layout: Layout) -> None:
    # Not as an array of texts, in which each takes the room of the longest, and zeros at an end are lost.
    texts = np.frombuffer(_json(rows).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{_ROWS: texts, **columns_of(rows, layout)})


def read_npz(path: Path, layout: Layout) -> Iterator[Row]:
    columns = arrays_of(path, limit=_MOST_BYTES)
    if _ROWS not in columns:
        raise ArrayFault(f"has no '{_ROWS}'")
    yield from rows_of(_texts(columns.pop(_ROWS).tobytes()), columns, layout)


def write_safetensors(path: Path, rows: Sequence[Row], layout: Layout) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in columns_of(rows, layout).items()}
    if layout.dtype == "bf16":
        tensors = {name: each.bfloat16() if each.is_floating_point() else each for name, each in tensors.items()}
    save_file(tensors, path, {_ROWS: _json(rows)})  # two entries of metadata would stand in any order


def read_safetensors(path: Path, layout: Layout) -> Iterator[Row]:
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        texts = _texts((file.metadata() or {}).get(_ROWS, ""))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    stored = torch.bfloat16 if layout.dtype == "bf16" else None
    columns = {name: (each.float() if each.dtype == stored else each).numpy() for name, each in tensors.items()}
    yield from rows_of(texts, columns, layout)


def _json(rows: Sequence[Row]) -> str:
    return json.dumps(texts_of(rows), ensure_ascii=False)


def _texts(data: bytes | str) -> Mapping[str, Any]:
    try:
        texts = json.loads(data)
    except (ValueError, RecursionError):
        raise ArrayFault(f"'{_ROWS}' is not JSON") from None
    if not isinstance(texts, dict):
        raise ArrayFault(f"'{_ROWS}' is not a JSON object")
    return texts
