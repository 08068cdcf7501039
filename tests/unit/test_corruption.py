"""200 flipped bits and 50 cuts over shards and index: nothing crashes or hangs, verify finds each, repair mends it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from data_tools.verify.directory import Verdict, check_directory
from data_tools.verify.repair import repaired
from tests.unit.folders import files_of
from tests.unit.shard_making import write_samples
from tests.unit.shard_reading import OPTIONS, Looker, loader, opened
from vlp.data.dataset import Dataset
from vlp.data.index import build_index
from vlp.data.loader import EvaluationLoader
from vlp.errors import VlpError
from vlp.types import Step

FLIPS, CUTS = 200, 50
SECONDS = 60
"""A case takes some hundredths of one."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small data directory, by name."""
    directory = tmp_path_factory.mktemp("whole")
    write_samples(directory, samples=8, per_shard=4)
    build_index(directory, made_by={"command": "coco", "captions": "annotations/captions_train2017.json"})
    opened(directory)
    return files_of(directory)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here outlives the test


def write(directory: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    for name, data in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def damaged(files: dict[str, bytes], random: np.random.Generator, *, cut: bool) -> tuple[str, dict[str, bytes]]:
    """One file with a flipped bit or without its end; every kind of file is hit equally often."""
    kinds = [[n for n in files if n.endswith(".tar")], ["index/manifest.json"]]
    kinds += [[n for n in files if n.endswith(".npz") and (n.count("/") == 2) == counts] for counts in (False, True)]
    names = kinds[random.choice(len(kinds), p=[0.55, 0.15, 0.15, 0.15])]
    name = names[random.integers(len(names))]
    data = bytearray(files[name])
    place = int(random.integers(len(data)))
    if cut:
        del data[place:]
        return f"{name} cut at {place}", {**files, name: bytes(data)}
    bit = int(random.integers(8))
    data[place] ^= 1 << bit
    return f"{name} with bit {bit} of byte {place} flipped", {**files, name: bytes(data)}


@contextmanager
def in_time(what: str) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(what)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(dataset: Dataset) -> list[Step]:
    """Train on it, evaluate on it."""
    return [*loader(dataset), *EvaluationLoader(dataset, Looker(), seed=1, **OPTIONS)]


def check(directory: Path) -> Verdict:
    return check_directory(directory, 1, lambda done, total: None)


def mend(verdict: Verdict, out: Path) -> None:
    repaired(verdict, out, 1, lambda done, total: None)


def test_whole_data_are_clean_and_read(whole: dict[str, bytes], tmp_path: Path) -> None:
    write(tmp_path / "data", whole)
    verdict = check(tmp_path / "data")
    assert not verdict.findings.damage()
    assert verdict.samples == 8
    steps = read(opened(tmp_path / "data"))
    assert all(step.examples and not step.failure and not step.quarantined for step in steps)
    mend(verdict, tmp_path / "copy")
    for name in ("shard-000000.tar", "shard-000001.tar"):
        assert (tmp_path / "copy" / name).read_bytes() == whole[name]


@pytest.mark.parametrize("part", range(5))
def test_no_damage_crashes_hangs_or_stays_hidden(whole: dict[str, bytes], part: int, tmp_path: Path) -> None:
    random = np.random.default_rng(part)
    data, copy = tmp_path / "data", tmp_path / "copy"
    seen = {"failed": 0, "quarantined": 0, "unharmed": 0}
    for number in range((FLIPS + CUTS) // 5):
        what, files = damaged(whole, random, cut=number < CUTS // 5)
        with in_time(what):
            seen[how_it_reads(data, whole, files, while_running=number % 2 == 0)] += 1
            write(data, files)
            verdict = check(data)
            assert verdict.findings.damage(), what
            shutil.rmtree(copy, ignore_errors=True)
            mend(verdict, copy)
            again = check(copy)
            assert not again.findings.damage(), (what, again.findings)
            lost = 8 - again.samples
            assert lost <= (0 if ".tar" not in what else 4 if "cut at" in what else 1), what
    assert min(seen.values()) >= 2, f"the cases are of every kind: {seen}"


def how_it_reads(data: Path, whole: dict[str, bytes], files: dict[str, bytes], *, while_running: bool) -> str:
    """Damaged before it is opened, or after; what is no sentence for the user fails the test."""
    try:
        write(data, whole if while_running else files)
        dataset = opened(data)
        write(data, files)
        bad = any(step.failure or step.quarantined for step in read(dataset))
        with suppress(VlpError):
            build_index(data)
    except VlpError:
        return "failed"
    return "quarantined" if bad else "unharmed"
