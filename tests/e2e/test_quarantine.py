"""A run on damaged shards: what it replaces and records, when it gives up, and how verify mends its data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.e2e.conftest import SMALL, Shapes, done, lines, steps_of, vlp, vlp_data, vlp_process


def damaged(shapes: Shapes, data: Path, every: int) -> Path:
    """A copy of the training shards in which the features of each `every`-th sample are no array."""
    shutil.copytree(shapes.train, data)
    for path in data.glob("*.tar"):
        content = bytearray(path.read_bytes())
        for number, key in enumerate(sorted(name[:-5] for name in names(path) if name.endswith(".json"))):
            if number % every == 0:
                place = content.index(b"NUMPY", content.index(f"{key}.features.npy".encode()))
                content[place : place + 5] = b"numpy"
        path.write_bytes(content)
    return data


def names(path: Path) -> list[str]:
    import tarfile

    with tarfile.open(path) as archive:
        return archive.getnames()


def command(data: Path, shapes: Shapes, run: Path, *more: str) -> tuple[str, ...]:
    given = (f"data.train={data}", f"tokenizer={shapes.tokenizer}", *SMALL, "batch.size=24", "checkpoint.every=4")
    return ("pretrain", "uniter_tiny", *given, f"run.dir={run}", *more)


def test_a_run_replaces_bad_samples_and_records_each_once(shapes: Shapes, tmp_path: Path) -> None:
    data = damaged(shapes, tmp_path / "data", every=20)
    run = tmp_path / "run"
    given = command(data, shapes, run, "run.steps=12", "data.quarantine_limit=0.5", "data.workers=1")
    said = done(vlp(*given))
    told = lines(run / "quarantine.jsonl")
    replaced = sum(step["quarantined"] for step in steps_of(run))
    assert f"examples replaced: {replaced:.0f}\n" in said.out
    check(told, data)
    assert replaced > len(told), "a sample has several captions, and may come again"
    # As after a crash in step 9: what later steps recorded is recorded again, and only that.
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    done(vlp(*given, "--resume"))
    assert lines(run / "quarantine.jsonl") == told
    assert sum(step["quarantined"] for step in steps_of(run)) == replaced


def check(told: list[dict[str, Any]], data: Path) -> None:
    assert told
    assert len({(record["shard"], record["key"], record["member"]) for record in told}) == len(told)
    for record in told:
        assert set(record) == {"step", "data", "shard", "key", "member", "error"}
        assert (record["data"], record["member"]) == (str(data), "features.npy")
        assert record["error"] == "is not an .npy array"
        assert f"{record['key']}.features.npy" in names(data / record["shard"])


def test_too_many_bad_samples_end_the_run_and_verify_mends_the_data(shapes: Shapes, tmp_path: Path) -> None:
    data, copy = damaged(shapes, tmp_path / "data", every=3), tmp_path / "copy"
    said = vlp_process(*command(data, shapes, tmp_path / "run", "run.steps=50"), "--nproc", 2)
    assert said.code == 1
    assert "Traceback" not in said.err
    assert "of the examples seen so far" in said.err
    assert f"`vlp-data verify {data} --repair OUT`" in said.err
    assert (tmp_path / "run" / "checkpoints" / f"step-{len(steps_of(tmp_path / 'run')):08d}" / "state.json").is_file()
    check(lines(tmp_path / "run" / "quarantine.jsonl"), data)

    report = tmp_path / "report.json"
    assert vlp_data("verify", data, "--repair", copy, "--report", report).code == 1
    bad = np.ceil(np.array([len(names(path)) for path in data.glob("*.tar")]) / 6 / 3).sum()
    assert json.loads(report.read_text())["findings"]["regions"]["count"] == bad
    done(vlp_data("verify", copy))
    run = tmp_path / "again"
    done(vlp(*command(copy, shapes, run, "run.steps=4")))
    assert not lines(run / "quarantine.jsonl")


def test_evaluation_and_extraction_count_what_they_leave_out(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    data = damaged(shapes, tmp_path / "data", every=10)
    given = ("--model", single / "model", "--data", data)
    done(vlp("evaluate", *given, "--out", tmp_path / "eval.json"))
    counted = json.loads((tmp_path / "eval.json").read_text())["metrics"]["unreadable_samples"]
    said = done(vlp("extract", *given, "--out", tmp_path / "features"))
    lost = json.loads((tmp_path / "features" / "manifest.json").read_text())["quarantined"]
    told = lines(tmp_path / "features" / "quarantine.jsonl")
    assert len(told) == lost > counted, "a sample has several captions"
    assert len({record["id"].rpartition("#")[0] for record in told}) == counted > 0
    assert f"{lost} examples cannot be used and were left out" in said.out
