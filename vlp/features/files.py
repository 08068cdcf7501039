"""A part's rows as a file, and back. The same rows give the same bytes.

    parquet       a column per feature: a number, a list of numbers, or a list of lists, one per token
    npz           `ids`, `keys`, `words`, and an array per feature
    safetensors   an array per feature; ids, keys and words in the header
    webdataset    a tar with `<key>.<name>.npy`, and `<key>.json` with ids and words; a photo's texts share its key

In npz and safetensors the tokens of all examples stand one after the other, and `<name>.lengths` says how many are
whose; maps stand there flat, with their sides for lengths. In a tar, a key with several texts has arrays likewise.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import read_npy
from vlp.features.kinds import Feature

Format = Literal["parquet", "npz", "safetensors", "webdataset"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, str] = {
    "parquet": ".parquet",
    "npz": ".npz",
    "safetensors": ".safetensors",
    "webdataset": ".tar",
}
Dtype = Literal["fp32", "fp16", "bf16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """The features of one example."""

    id: str
    key: str
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


def write(format: Format, path: Path, rows: Sequence[Row], layout: Layout) -> None:
    """Write a file of features; the caller puts it in its place."""
    _WRITERS[format](path, rows, layout)


def read(format: Format, path: Path, layout: Layout) -> Iterator[Row]:
    """The rows of a file, in their order; numbers as they were written (bf16 as float32)."""
    yield from _READERS[format](path, layout)


# ------------------------------------------------------------------------------------------------ arrays of all rows


def _column(one: Feature, rows: Sequence[Row], layout: Layout) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
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


def _columns(rows: Sequence[Row], layout: Layout) -> Arrays:
    found: Arrays = {}
    for one in layout.features:
        found[one.name], lengths = _column(one, rows, layout)
        if lengths is not None:
            found[f"{one.name}.lengths"] = lengths
    return found


def _rows(ids: Sequence[tuple[str, str, str]], columns: Mapping[str, NDArray[Any]], layout: Layout) -> Iterator[Row]:
    """The inverse of `_columns`."""
    ends = {}
    for one in layout.features:
        if one.form in ("tokens", "map"):
            lengths = columns[f"{one.name}.lengths"]
            ends[one.name] = np.cumsum(layout.widths[one.name] * lengths**2 if one.form == "map" else lengths)
    for number, (id, key, words) in enumerate(ids):
        arrays: Arrays = {}
        for one in layout.features:
            if one.form in ("number", "vector"):
                arrays[one.name] = columns[one.name][number]
                continue
            end = ends[one.name]
            part = columns[one.name][int(end[number - 1]) if number else 0 : int(end[number])]
            arrays[one.name] = _map(part, layout.widths[one.name]) if one.form == "map" else part
        yield Row(id, key, words, arrays)


def _map(flat: NDArray[Any], width: int) -> NDArray[Any]:
    side = math.isqrt(len(flat) // width)
    return flat.reshape(width, side, side)


# ------------------------------------------------------------------------------------------------------------ parquet


def _write_parquet(path: Path, rows: Sequence[Row], layout: Layout) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = pa.float16() if layout.dtype == "fp16" else pa.float32()
    columns: dict[str, Any] = {
        "id": pa.array([row.id for row in rows], pa.string()),
        "key": pa.array([row.key for row in rows], pa.string()),
        "words": pa.array([row.words for row in rows], pa.string()),
    }
    for one in layout.features:
        array, lengths = _column(one, rows, layout)
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


def _read_parquet(path: Path, layout: Layout) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(256):
            columns: Arrays = {}
            for one in layout.features:
                column = batch.column(one.name)
                if one.form == "number":
                    columns[one.name] = column.to_numpy(zero_copy_only=False)
                    continue
                flat, lengths = column.flatten(), np.diff(column.offsets.to_numpy())
                width = layout.widths[one.name]
                values = (flat.flatten() if one.form == "tokens" else flat).to_numpy(zero_copy_only=False)
                columns[one.name] = values if one.form == "map" else values.reshape(-1, width)
                if one.form != "vector":
                    sides = np.sqrt(lengths // width).round().astype(np.int64) if one.form == "map" else lengths
                    columns[f"{one.name}.lengths"] = sides
            names = (batch.column(name).to_pylist() for name in ("id", "key", "words"))
            yield from _rows(list(zip(*names, strict=True)), columns, layout)


# ---------------------------------------------------------------------------------------------------- npz, safetensors


def _write_npz(path: Path, rows: Sequence[Row], layout: Layout) -> None:
    arrays: dict[str, Any] = {
        "ids": _strings([row.id for row in rows]),
        "keys": _strings([row.key for row in rows]),
        "words": _strings([row.words for row in rows]),
    }
    with path.open("wb") as file:
        np.savez(file, **(arrays | _columns(rows, layout)))


def _strings(texts: Sequence[str]) -> NDArray[np.str_]:
    """An array of texts, which pickles nothing. numpy takes zeros at the end of a text for padding, so they are cut."""
    return np.array(texts, np.str_) if texts else np.zeros(0, "<U1")


def _read_npz(path: Path, layout: Layout) -> Iterator[Row]:
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    ids = zip(*(columns.pop(name).tolist() for name in ("ids", "keys", "words")), strict=True)
    yield from _rows(list(ids), columns, layout)


def _write_safetensors(path: Path, rows: Sequence[Row], layout: Layout) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in _columns(rows, layout).items()}
    if layout.dtype == "bf16":
        tensors = {name: each.bfloat16() if each.is_floating_point() else each for name, each in tensors.items()}
    about = {"ids": [row.id for row in rows], "keys": [row.key for row in rows], "words": [row.words for row in rows]}
    save_file(tensors, path, {"rows": json.dumps(about, ensure_ascii=False)})  # two entries would stand in any order


def _read_safetensors(path: Path, layout: Layout) -> Iterator[Row]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["rows"])
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    arrays = {
        name: (each.float() if each.is_floating_point() and each.itemsize == 2 else each).numpy()
        for name, each in columns.items()
    }
    if layout.dtype == "fp16":
        arrays = {name: each.astype(np.float16) if each.dtype == np.float32 else each for name, each in arrays.items()}
    ids = zip(*(about[name] for name in ("ids", "keys", "words")), strict=True)
    yield from _rows(list(ids), arrays, layout)


# --------------------------------------------------------------------------------------------------------- webdataset


def _write_webdataset(path: Path, rows: Sequence[Row], layout: Layout) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for key, group in groupby(rows, lambda row: row.key):
            own = list(group)
            stem = member_key(key)
            about = {"key": key, "ids": [row.id for row in own], "words": [row.words for row in own]}
            _add(archive, f"{stem}.json", json.dumps(about, ensure_ascii=False).encode())
            for name, array in _columns(own, layout).items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                _add(archive, f"{stem}.{name}.npy", buffer.getvalue())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def _read_webdataset(path: Path, layout: Layout) -> Iterator[Row]:
    with tarfile.open(path) as archive:
        about: dict[str, Any] | None = None
        columns: Arrays = {}
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name.endswith(".npy"):
                base = member.name.rpartition("/")[2]
                columns[base.partition(".")[2].removesuffix(".npy")] = read_npy(data)
                continue
            if about is not None:
                yield from _of_key(about, columns, layout)
            about, columns = json.loads(data), {}
        if about is not None:
            yield from _of_key(about, columns, layout)


def _of_key(about: Mapping[str, Any], columns: Arrays, layout: Layout) -> Iterator[Row]:
    ids = [(id, about["key"], words) for id, words in zip(about["ids"], about["words"], strict=True)]
    return _rows(ids, columns, layout)


def member_key(key: str) -> str:
    """A key as it may stand in a tar: WebDataset cuts it at the first dot of its last part, and whoever unpacks the tar
    stays in their folder. What would break that is written as in a URL; keys of shards stay what they are."""
    *folders, last = key.split("/")
    safe = [_quoted(part, "" if part.strip(".") else ".") or "%2F" for part in folders]
    return "/".join([*safe, _quoted(last, ".") or "_"])


def _quoted(part: str, more: str) -> str:
    unsafe = {"\\", "\x7f", *more}
    return "".join(
        "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogateescape"))
        if letter < " " or letter in unsafe or "\ud800" <= letter <= "\udfff"
        else letter
        for letter in part
    )


_WRITERS: dict[Format, Callable[[Path, Sequence[Row], Layout], None]] = {
    "parquet": _write_parquet,
    "npz": _write_npz,
    "safetensors": _write_safetensors,
    "webdataset": _write_webdataset,
}
_READERS: dict[Format, Callable[[Path, Layout], Iterator[Row]]] = {
    "parquet": _read_parquet,
    "npz": _read_npz,
    "safetensors": _read_safetensors,
    "webdataset": _read_webdataset,
}
