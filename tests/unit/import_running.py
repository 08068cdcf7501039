"""Running `vlp-data` in a test, and looking at what it wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data_tools.cli import main
from data_tools.report import Report
from vlp.data.index import open_index
from vlp.data.shards import ShardReader
from vlp.types import Sample


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
