"""Shards that go bad under a loader: what it makes of them, on one rank and on several."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from tests.unit.shard_making import photo, write_samples
from tests.unit.shard_reading import OPTIONS, Looker, ids, loader, opened
from vlp.data.dataset import Dataset
from vlp.data.index import build_index
from vlp.data.loader import EvaluationLoader
from vlp.types import Step


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_samples(tmp_path / "data", samples=24, per_shard=6)
    build_index(tmp_path / "data")
    return tmp_path / "data"


def bad_shards(steps: list[Step]) -> set[str]:
    return {record["shard"] for step in steps for record in step.quarantined}


@pytest.mark.parametrize(
    ("old", "new", "member", "error"),
    [
        (b"caption 0 of 1", b"caption 0 \xff\xff 1", "json", "is not UTF-8"),
        (b'"captions": ["caption 0 of 1', b'"saptions": ["caption 0 of 1', "json", "another number of texts"),
        (b"\xff\xda", b"\xff\xd9", "image", "does not decode|is not a JPEG"),  # Pillow 13 says the one, 12 the other
        (photo(2)[:3], b"\0\0\0", "image", "is not a JPEG, PNG or WebP image"),
    ],
)
def test_a_bad_member_is_replaced_and_recorded(data: Path, old: bytes, new: bytes, member: str, error: str) -> None:
    path = data / "shard-000000.tar"
    content = path.read_bytes()
    place = content.index(photo(2)) if member == "image" else content.index(old)
    place = content.index(old, place)
    path.write_bytes(content[:place] + new + content[place + len(old) :])
    steps = list(loader(opened(data), steps=9))
    records = [record for step in steps for record in step.quarantined]
    assert records
    for record in records:
        assert (record["data"], record["shard"]) == (str(data), "shard-000000.tar")
        assert record["key"] in ("s1", "s2")
        assert record["member"] == member
        assert re.search(error, record["error"])
    assert all(step.examples == 4 and not step.failure for step in steps)


def test_a_shard_truncated_under_the_loader(data: Path) -> None:
    dataset = opened(data)
    steps = iter(loader(dataset, steps=12))
    seen = [next(steps), next(steps)]
    path = data / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    seen += steps
    assert bad_shards(seen) == {"shard-000001.tar"}
    assert all("truncated" in record["error"] for step in seen for record in step.quarantined)
    assert [step.examples for step in seen] == [4] * 12
    assert not any(step.failure for step in seen)


def test_a_shard_deleted_under_the_loader(data: Path) -> None:
    dataset = opened(data)
    (data / "shard-000002.tar").unlink()
    alone = list(loader(dataset, steps=12))
    assert bad_shards(alone) == {"shard-000002.tar"}
    assert [step.examples for step in alone] == [4] * 12
    shared = [list(loader(dataset, steps=12, rank=rank, world_size=3)) for rank in range(3)]
    for number, step in enumerate(alone):
        parts = [rank[number] for rank in shared]
        assert ids(parts) == ids([step])
        assert len({len(part.micro_batches) for part in parts}) == 1


def test_a_block_that_is_gone_ends_the_run_in_a_sentence(data: Path) -> None:
    dataset = opened(data)
    for name in ("shard-000002.tar", "shard-000003.tar"):
        (data / name).unlink()
    steps = list(loader(dataset, steps=12))  # two shards make a block
    failures = {step.failure for step in steps if step.failure}
    assert failures
    for failure in failures:
        assert failure.startswith(f"{data}: no example of a block of shards can be used (shard-00000")
        assert "cannot be read: No such file or directory" in failure
        assert f"`vlp-data verify {data} --repair OUT`" in failure


def test_an_index_file_that_goes_bad_ends_the_run_in_a_sentence(data: Path) -> None:
    dataset = pickle.loads(pickle.dumps(opened(data)))  # as a worker has it, without the tables of this process
    (data / "index" / "shard-000001.npz").write_bytes(b"PK")
    steps = list(loader(dataset, steps=12, world_size=2))
    assert any("shard-000001.npz: the shard's index cannot be used" in step.failure for step in steps)
    assert all(not step.micro_batches for step in steps if step.failure)


def evaluated(dataset: Dataset, rank: int = 0, ranks: int = 1) -> list[Step]:
    return list(EvaluationLoader(dataset, Looker(), seed=1, rank=rank, world_size=ranks, **OPTIONS))


def test_evaluation_leaves_out_what_is_gone(data: Path) -> None:
    whole = ids(evaluated(opened(data)))
    dataset = opened(data)
    (data / "shard-000002.tar").unlink()
    shared = [evaluated(dataset, rank, 2) for rank in range(2)]
    assert len({len(steps) for steps in shared}) == 1
    steps = [step for steps in shared for step in steps]
    assert ids(steps) == [name for name in whole if not name.startswith("shard-000002/")]
    assert bad_shards(steps) == {"shard-000002.tar"}
