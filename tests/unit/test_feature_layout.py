"""The table of docs/features.md ("Files"), read by somebody who has that page and no vlp: each format, each form."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.test_damaged_features import LAYOUT, rows
from vlp.features.files import FORMATS, SUFFIXES, Format, write
from vlp.features.rows import Layout

Found = list[dict[str, Any]]
WIDTHS = {"pooled": 3, "text": 3, "attention": 2}


def from_parquet(path: Path) -> Found:
    import pyarrow.parquet as pq

    found = []
    for row in pq.read_table(path).to_pylist():
        maps = np.array(row["attention"])
        side = int((len(maps) / WIDTHS["attention"]) ** 0.5)
        found.append(
            {
                **{"id": row["id"], "key": row["key"], "image": row["image.name"], "words": row["words"]},
                **{"itm": row["itm"], "pooled": np.array(row["pooled"])},
                "text": np.array(row["text"]).reshape(-1, WIDTHS["text"]),
                "attention": maps.reshape(WIDTHS["attention"], side, side),
            }
        )
    return found


def from_stacked(arrays: Any, texts: dict[str, list[str]]) -> Found:
    found, text, attention = [], 0, 0
    for number, id in enumerate(texts["ids"]):
        tokens, side = int(arrays["text.lengths"][number]), int(arrays["attention.lengths"][number])
        size = WIDTHS["attention"] * side * side
        found.append(
            {
                **{"id": id, "key": texts["keys"][number]},
                **{"image": texts["images"][number], "words": texts["words"][number]},
                **{"itm": arrays["itm"][number], "pooled": arrays["pooled"][number]},
                "text": arrays["text"][text : text + tokens],
                "attention": arrays["attention"][attention : attention + size].reshape(-1, side, side),
            }
        )
        text, attention = text + tokens, attention + size
    return found


def from_npz(path: Path) -> Found:
    with np.load(path) as arrays:
        return from_stacked(arrays, json.loads(arrays["rows"].tobytes()))


def from_safetensors(path: Path) -> Found:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        return from_stacked(arrays, json.loads(file.metadata()["rows"]))


def from_tar(path: Path) -> Found:
    members: dict[str, dict[str, Any]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            stem, _, name = member.name.partition(".")
            data = archive.extractfile(member).read()  # type: ignore[union-attr]
            own = members.setdefault(stem, {})
            own[name.removesuffix(".npy")] = json.loads(data) if name == "json" else np.load(io.BytesIO(data))
    found: Found = []
    for own in members.values():
        about = own["json"]
        found += from_stacked(own, {**about, "keys": [about["key"]] * len(about["ids"])})
    return found


READERS: dict[Format, Callable[[Path], Found]] = {
    "parquet": from_parquet,
    "npz": from_npz,
    "safetensors": from_safetensors,
    "webdataset": from_tar,
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_files_are_laid_out_as_the_page_says(format: Format, dtype: Any, tmp_path: Path) -> None:
    path = tmp_path / f"x{SUFFIXES[format]}"
    layout = Layout(LAYOUT.features, LAYOUT.widths, dtype)
    write(format, path, rows(), layout)
    found = READERS[format](path)
    assert len(found) == len(rows())
    for row, wanted in zip(found, rows(), strict=True):
        assert (row["id"], row["key"], row["image"], row["words"]) == (
            wanted.id,
            wanted.key,
            wanted.image,
            wanted.words,
        )
        for name, array in wanted.arrays.items():
            stored = array.astype(layout.numpy)
            assert np.shape(row[name]) == stored.shape
            np.testing.assert_array_equal(np.asarray(row[name], layout.numpy), stored)
            if format != "parquet":  # whose values became Python's on the way
                assert row[name].dtype == stored.dtype


def test_half_precision_of_safetensors_is_its_own_type(tmp_path: Path) -> None:
    write("safetensors", tmp_path / "x", rows(), Layout(LAYOUT.features, LAYOUT.widths, "bf16"))
    data = (tmp_path / "x").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {name: header[name]["dtype"] for name in ("pooled", "text", "itm", "attention", "text.lengths")} == {
        **dict.fromkeys(("pooled", "text", "itm", "attention"), "BF16"),
        "text.lengths": "I64",
    }


def test_parquet_columns_are_typed_as_the_page_says(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write("parquet", tmp_path / "x", rows(), Layout(LAYOUT.features, LAYOUT.widths, "fp16"))
    schema = pq.read_schema(tmp_path / "x")
    assert schema.names == ["id", "key", "image.name", "words", "pooled", "text", "itm", "attention"]
    assert str(schema.field("itm").type) == "halffloat"
    assert str(schema.field("text").type.value_type.value_type) == "halffloat"
