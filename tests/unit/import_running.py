"""Running `vlp-data` in a test, and looking at what it wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data_tools.cli import main
from data_tools.report import Report
from tests.unit.shard_making import photo
from vlp.data.index import open_index
from vlp.data.shards import ShardReader
from vlp.types import Sample

IMAGES = 24


def vlp_data(*words: object) -> int:
    """`vlp-data` in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vlp-data", *map(str, words)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def samples_of(out: Path) -> list[Sample]:
    """All samples of a data directory, whole."""
    reader = ShardReader(open_index(out))
    shards = enumerate(reader.index.manifest.shards)
    places = [(shard, row) for shard, entry in shards for row in range(entry.samples)]
    return [reader.read(shard, row, image=True, regions=True, texts=True) for shard, row in places]


def records_of(out: Path) -> list[dict[str, Any]]:
    """The JSON of all samples."""
    reader = ShardReader(open_index(out))
    found = []
    for shard, entry in enumerate(reader.index.manifest.shards):
        table = reader.index.table(shard)
        for row in range(entry.samples):
            found.append(json.loads(reader.member(table, shard, row, "json") or b""))
    return found


def skipped(report: Report) -> dict[str, tuple[int, list[str]]]:
    """How often and for which names something was skipped, by the reason."""
    return {reason: (entry.count, entry.names) for reason, entry in report.skipped.items()}


def saved_report(out: Path) -> dict[str, Any]:
    """`import_report.json`, with what was skipped as `skipped` gives it."""
    report: dict[str, Any] = json.loads((out / "import_report.json").read_text())
    return {**report, "skipped": {entry["reason"]: (entry["count"], entry["examples"]) for entry in report["skipped"]}}


def table_of_photos(path: Path) -> Path:
    """A table of 24 photos with two captions each, and the photos; every fifth is missing, 7 and 20 are one file."""
    folder = path / "images"
    folder.mkdir()
    lines = []
    for number in range(IMAGES):
        if number % 5 != 4:
            size = (40, 30) if number % 2 else (30, 50)
            (folder / f"p{number}.jpg").write_bytes(photo(7 if number == 20 else number, size))
        lines += [f"p{number}.jpg\tcaption {text} of {number}" for text in (1, 2)]
    (folder / "p20.jpg").write_bytes((folder / "p7.jpg").read_bytes())
    (path / "x.tsv").write_text("\n".join(lines))
    return path


def import_tsv(source: Path, out: Path, *more: object) -> int:
    table, images = source / "x.tsv", source / "images"
    return vlp_data("tsv", "--file", table, "--images", images, "--out", out, "--samples-per-shard", 3, *more)
