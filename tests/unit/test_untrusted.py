"""Shards that attack are refused in a sentence, in bounded memory and time, and nothing is written elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_tools.verify.directory import check_directory
from data_tools.verify.repair import repaired
from tests.conftest import ROOT
from tests.unit.hostile import ATTACKS, BLOCK, COSTLY, header, padded
from tests.unit.shard_making import photo, texts, write_samples
from vlp.data.index import build_index, open_index
from vlp.data.shards import BadSample, ShardReader
from vlp.data.tables import load_table, save_table

MEGABYTES, MOST_MEGABYTES = 450, 750
"""On top of the program: of what is refused (measured: 381, five million JSON objects), and of the largest picture that
is taken (609)."""
SECONDS = 30
"""Of CPU time; measured: 4 (the JSON of 1 GB, whose bytes are read for the checksum)."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a process said of each attack, and what it cost."""
    if not Path("/proc/self/clear_refs").is_file():
        pytest.skip("peaks of memory are read from Linux's /proc")
    world = tmp_path_factory.mktemp("world")
    for name, make in {**ATTACKS, **COSTLY}.items():
        (world / "shards" / name).mkdir(parents=True)
        make(world / "shards" / name / "x.tar")
    before = {path for path in world.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "tests.unit.hostile", str(world / "shards")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = {path for path in world.rglob("*") if path.is_file()} - before
    assert all(path.parent.name == "index" for path in written), written
    assert not Path("/vlp-hostile.jpg").exists()
    return {record["attack"]: record for record in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_at_little_cost(attack: str, records: dict[str, dict[str, Any]]) -> None:
    record = records[attack]
    assert record["said"]
    assert all("Traceback" not in sentence and len(sentence) < 2000 for sentence in record["said"])
    assert record["MB"] < MEGABYTES
    assert record["seconds"] < SECONDS


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        ("a JSON of 1 GB", "has 1073741824 bytes, more than 16777216: it is refused"),
        ("40 extended headers in a row", "extended headers of 1048610 bytes"),
        ("a caption of marks out of order", "more than 100 combining marks in a row"),
        ("a link", "links and devices are refused"),
        ("a name that climbs out", "which points outside the shard"),
        ("a PNG of 50000 x 50000", "more than 67108864 pixels"),
        ("a JPEG of 3000 scans", "more than 100 scans"),
        ("a pickle in an npz", "holds pickled Python objects, which are never loaded"),
        ("an npz of 20,000 members", "more than 4096 members"),
        ("an npz that unpacks to 2 GB", "unpacks to more than 67108864 bytes"),
    ],
)
def test_the_sentence_says_why(attack: str, sentence: str, records: dict[str, dict[str, Any]]) -> None:
    assert sentence in records[attack]["said"][0]


@pytest.mark.parametrize("attack", COSTLY)
def test_what_is_as_large_as_may_be_has_a_bound(attack: str, records: dict[str, dict[str, Any]]) -> None:
    assert not records[attack]["said"]
    assert records[attack]["MB"] < MOST_MEGABYTES
    assert records[attack]["seconds"] < SECONDS


def test_a_repair_takes_the_good_samples_and_writes_nothing_elsewhere(tmp_path: Path) -> None:
    def sample(key: str) -> bytes:
        words, picture = texts("a caption"), photo()
        return header(f"{key}.jpg", len(picture)) + padded(picture) + header(f"{key}.json", len(words)) + padded(words)

    bad = [
        header("../out.jpg", 3) + padded(b"out"),
        header("/vlp-hostile.jpg", 3) + padded(b"out"),
        header("b.jpg", 0, tarfile.SYMTYPE),
        header("c.jpg", 0, tarfile.CHRTYPE),
        header("d.json", 1 << 40),
    ]
    parts = [sample("s0")]
    for number, part in enumerate(bad, start=1):
        parts += [part, sample(f"s{number}")]
    data = tmp_path / "deep" / "data"
    data.mkdir(parents=True)
    (data / "x.tar").write_bytes(b"".join(parts) + bytes(2 * BLOCK))
    verdict = check_directory(data, 1, lambda done, total: None)
    assert verdict.findings.counts["tar"] == len(bad)
    repaired(verdict, tmp_path / "deep" / "copy", 1, lambda done, total: None)
    assert open_index(tmp_path / "deep" / "copy").table(0).keys == ("s0", "s1", "s2", "s3", "s4", "s5")
    with tarfile.open(tmp_path / "deep" / "copy" / "x.tar") as archive:
        assert all(member.isreg() and "/" not in member.name for member in archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["copy", "data"]


def test_an_index_that_points_at_too_much_is_not_believed(tmp_path: Path) -> None:
    write_samples(tmp_path, samples=3)
    build_index(tmp_path)
    shard, file = tmp_path / "shard-000000.tar", tmp_path / "index" / "shard-000000.npz"
    with shard.open("ab") as tar:
        tar.truncate(128 << 20)
    build_index(tmp_path)
    table, entry = load_table(file)
    table.members["features.npy"][1][1] = 80 << 20
    save_table(file, table, entry)
    reader = ShardReader(open_index(tmp_path))
    with pytest.raises(BadSample, match=r"sample 's1': features.npy has 83886080 bytes, more than 67108864"):
        reader.read(0, 1, image=False, regions=True, texts=False)
