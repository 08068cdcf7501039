"""What is fetched of remote data, when, and by whom: real processes share a cache before a real server."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.fileserver import FileServer, serving
from tests.distributed.remotedata import EXAMPLES, SHARDS, Plain, content, loader, names, opened, same, sizes
from tests.unit.task_making import text_encoder
from vlp.data.dataset import Dataset
from vlp.data.loader import EvaluationLoader
from vlp.data.manifest import INDEX
from vlp.data.order import Order
from vlp.errors import ConfigError, DataError

# ------------------------------------------------------------------------------------------------------------ the cache


def _walk(url: str, cache: Path, rank: int, ranks: int) -> None:
    remote = opened(url, cache)
    steps = list(loader(remote, last=EXAMPLES // 8, rank=rank, world_size=ranks, workers=1))
    assert sum(step.examples for step in steps)
    assert not any(step.failure for step in steps)
    os._exit(0)


def together(work: Callable[..., None], *each: tuple[Any, ...]) -> None:
    """Processes that run at the same time."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=arguments) for arguments in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_processes_of_a_machine_fetch_each_file_once(server: FileServer, local: Dataset, tmp_path: Path) -> None:
    server.delay = 0.02
    together(_walk, (server.url, tmp_path, 0, 2), (server.url, tmp_path, 1, 2))  # and a loader worker each
    assert server.shards == sizes(local)
    again = dict(server.sent)
    together(_walk, (server.url, tmp_path, 0, 1))
    assert server.shards == sizes(local), "a later run finds them"
    assert {name for name in again if server.sent[name] != again[name]} == {"manifest.json"}


def test_a_cache_smaller_than_the_dataset(server: FileServer, local: Dataset, tmp_path: Path) -> None:
    largest: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            if (tmp_path / "total").exists():
                largest.append(int((tmp_path / "total").read_text() or 0))

    thread = threading.Thread(target=watch)
    thread.start()
    remote = opened(server.url, tmp_path, shards=3)
    found = content(list(loader(remote, last=20)))  # three epochs
    done.set()
    thread.join()
    assert same(found, content(list(loader(local, last=20))))
    assert remote.remote is not None
    assert max(largest) <= remote.remote.settings.bytes < sum(sizes(local).values())
    fetched = {name: server.sent[name] / size for name, size in sizes(local).items()}
    assert max(fetched.values()) <= 4, "about once an epoch"


def test_a_cache_smaller_than_a_block_is_refused(server: FileServer, tmp_path: Path) -> None:
    remote = opened(server.url, tmp_path, shards=0)
    with pytest.raises(
        ConfigError, match=r"^data\.cache\.bytes: 30,000 are too few, the shards of http://.*block_shards$"
    ):
        loader(remote)


def test_the_next_blocks_are_fetched_at_once_and_ahead(server: FileServer, local: Dataset, tmp_path: Path) -> None:
    server.delay = 0.1
    remote = opened(server.url, tmp_path)
    steps = iter(loader(remote))
    next(steps)
    deadline = time.monotonic() + 10
    while len(server.shards) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    order = Order([local.examples_S], seed=3, batch_size=8, block_shards=2)
    first = [names(local)[shard] for block in order.blocks_from(0, 0, 0, 2) for shard in block]
    assert set(server.shards) == set(first), "the block that is read, and the next"
    assert server.most_at_once >= 2


def test_other_groups_shards_are_not_fetched(server: FileServer, local: Dataset, tmp_path: Path) -> None:
    order = Order([local.examples_S], seed=3, batch_size=8, groups=2, block_shards=2)
    expected = {shard for step in range(3) for shard in order.blocks_from(step, 1, 0, 2)[0]}
    own = {shard for step in range(3) for block in order.blocks_from(step, 1, 0, 2) for shard in block}
    remote = opened(server.url, tmp_path)
    found = content(list(loader(remote, last=3, groups=2, rank=1, world_size=2)))
    time.sleep(0.3)  # what is fetched ahead
    assert same(found, content(list(loader(local, last=3, groups=2, rank=1, world_size=2))))
    assert {names(local)[shard] for shard in expected} <= set(server.shards) <= {names(local)[shard] for shard in own}
    assert len(own) < SHARDS


# -------------------------------------------------------------------------------------------------------- token lengths


def test_lengths_beside_the_index_need_no_shard(server: FileServer, local: Dataset, tmp_path: Path) -> None:
    remote = opened(server.url, tmp_path)
    assert remote.lengths.stored
    assert remote.open_block(range(SHARDS))[0].tokens_E.tolist() == local.open_block(range(SHARDS))[0].tokens_E.tolist()
    assert not server.shards


@pytest.fixture
def bare(local: Dataset, quick: None, tmp_path: Path) -> Iterator[FileServer]:
    """A server whose data have an index but no token lengths."""
    shutil.copytree(local.directory, tmp_path / "bare", ignore=shutil.ignore_patterns("lengths-*"))
    with serving(tmp_path / "bare") as files:
        yield files


def test_lengths_that_are_not_there_are_counted_as_blocks_open(
    bare: FileServer, local: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = opened(bare.url, tmp_path / "cache")
    assert not remote.lengths.stored
    assert not bare.shards, "opening fetches no shard"
    assert remote.open_block([2])[0].tokens_E.tolist() == local.open_block([2])[0].tokens_E.tolist()
    assert set(bare.shards) == {names(local)[2]}
    assert same(content(list(loader(remote))), content(list(loader(local))))
    again = opened(bare.url, tmp_path / "cache")
    monkeypatch.setattr(again.lengths, "_count", None)  # counted once
    assert same(content(list(loader(again))), content(list(loader(local))))
    before = dict(bare.shards)
    batches = EvaluationLoader(again, Plain(), image_tokens=int, micro_tokens=60, seed=0)
    assert sum(step.examples for step in batches) == EXAMPLES
    assert bare.shards == before


def test_groups_of_their_own_need_lengths_beside_the_index(bare: FileServer, tmp_path: Path) -> None:
    remote = opened(bare.url, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"^data\.groups: with 2 groups .*`vlp-data index DIR --tokenizer TOKENIZER`"):
        loader(remote, groups=2, world_size=2)
    loader(remote, groups=2, world_size=1)  # which reads all groups


def test_lengths_of_some_shards_only_are_refused(bare: FileServer, local: Dataset, tmp_path: Path) -> None:
    shutil.copytree(
        Path(local.directory) / f"{INDEX}/lengths-{text_encoder().fingerprint}",
        bare.directory / f"{INDEX}/lengths-{text_encoder().fingerprint}",
    )
    (bare.directory / f"{INDEX}/lengths-{text_encoder().fingerprint}" / "shard-000001.npz").unlink()
    remote = opened(bare.url, tmp_path / "cache")
    with pytest.raises(DataError, match=r"shard-000001\.npz: is not there.*token lengths lie there of other shards"):
        remote.open_block([1])


# ---------------------------------------------------------------------------------------------------------- many shards


@pytest.mark.usefixtures("quick")
def test_opening_reads_the_manifest_alone(local: Dataset, tmp_path: Path) -> None:
    """40,000 shards, of which none is fetched (measured: 1 s)."""
    folder = tmp_path / "data" / INDEX
    folder.mkdir(parents=True)
    values = json.loads((Path(local.directory) / INDEX / "manifest.json").read_text())
    entry = values["shards"][0]
    values["shards"] = [{**entry, "name": f"shard-{number:06d}.tar"} for number in range(40_000)]
    (folder / "manifest.json").write_text(json.dumps({**values, "checksum": ""}))
    with serving(tmp_path / "data") as files:
        begin = time.monotonic()
        remote = opened(files.url, tmp_path / "cache")
        assert time.monotonic() - begin < 15
        assert len(remote.examples_S) == 40_000
        assert set(files.sent) == {"manifest.json"}


def test_a_loader_that_is_closed_does_not_wait_for_a_silent_server(server: FileServer, tmp_path: Path) -> None:
    remote = opened(server.url, tmp_path, timeout=60)
    made = loader(remote, workers=1)
    order = Order([remote.examples_S], seed=3, batch_size=8, block_shards=2)
    first = {names(remote)[shard] for shard in order.blocks_from(0, 0, 0, 1)[0]}
    server.silent = set(names(remote)) - first
    others = set(multiprocessing.active_children())  # ranks of other tests
    steps = iter(made)
    assert not next(steps).failure
    time.sleep(0.5)  # the worker waits for the second block by now
    begin = time.monotonic()
    steps.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begin < 15
    assert set(multiprocessing.active_children()) <= others
