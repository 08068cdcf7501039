"""Remote data on real servers on loopback: what is read is what lies there, however the servers and the disk behave."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.distributed.fileserver import FileServer, serving
from tests.unit.task_making import WORDS, dataset, sample, text_encoder
from vlp.data import storage
from vlp.data.batch import ImageForm, collate
from vlp.data.cache import CacheConfig
from vlp.data.dataset import Dataset
from vlp.data.index import Block, open_index
from vlp.data.lengths import token_lengths
from vlp.data.loader import EvaluationLoader, StepLoader
from vlp.data.manifest import INDEX
from vlp.data.order import Order
from vlp.errors import ConfigError, DataError
from vlp.types import Batch, Example, Pair, RegionInput, Sample, Slot, Step

SHARDS, PER_SHARD, CAPTIONS = 8, 3, 2
EXAMPLES = SHARDS * PER_SHARD * CAPTIONS
LENGTHS = f"{INDEX}/lengths-{text_encoder().fingerprint}"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Eight shards of three samples with two captions each, and their token lengths beside the index."""
    samples = [
        sample(n, *(f"{WORDS[(n + c) % len(WORDS)]} " * (1 + (n + c) % 5) for c in range(CAPTIONS)), regions=1 + n % 4)
        for n in range(SHARDS * PER_SHARD)
    ]
    return dataset(tmp_path_factory.mktemp("data"), samples, per_shard=PER_SHARD)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(storage, "_PIECE", 5000)  # several to a shard
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(local: Dataset) -> Iterator[FileServer]:
    with serving(Path(local.directory)) as files:
        yield files


def names(data: Dataset) -> list[str]:
    return [entry.name for entry in data.index.manifest.shards]


def sizes(data: Dataset) -> dict[str, int]:
    return {entry.name: entry.bytes for entry in data.index.manifest.shards}


def opened(url: str, cache: Path, *, shards: int = 100, local: Dataset | None = None, **settings: Any) -> Dataset:
    """A remote dataset whose cache has room for so many shards, and a little for tables."""
    room = shards * 20_000 + 30_000
    index = open_index(url, CacheConfig.parse({"dir": str(cache), "bytes": room, "timeout": 0.5, **settings}))
    encoder = text_encoder()
    return Dataset(index, "captions", token_lengths(index, encoder.count, encoder.fingerprint, encoder.max_length))


class Plain:
    """Pairs as they are."""

    wants_image = False
    wants_regions = True

    def pairs(self, slot: Slot, block: Block, rng: np.random.Generator) -> tuple[Pair, ...]:
        return (Pair(int(block.sample_E[slot.example]), slot.example),)

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, number: int, rng: np.random.Generator, step: int
    ) -> Example:
        assert image.regions is not None
        features_RD = np.asarray(image.regions.features_RD, np.float32)
        regions = RegionInput(features_RD, np.asarray(image.regions.boxes_R4, np.float32))
        ids, special_T, word_T = text_encoder().encode(text.captions[number])
        return Example("", ids, special_T, word_T, regions)

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        return collate([example for slot in examples for example in slot], ImageForm("regions", 6), {})


def loader(data: Dataset, last: int = 8, groups: int = 1, **options: Any) -> StepLoader:
    order = Order([data.examples_S], seed=3, batch_size=8, groups=groups, block_shards=2)
    options = {"image_tokens": int, "micro_tokens": 60, "first_step": 0, "last_step": last, **options}
    return StepLoader([data], order, Plain(), **options)


def content(steps: Sequence[Step]) -> list[tuple[int, list[str], list[int], NDArray[np.float32]]]:
    """Everything that a model would see."""
    result = []
    for step in steps:
        assert not step.failure
        assert not step.quarantined
        for batch in step.micro_batches:
            features = np.asarray(batch.image.features_MD)  # type: ignore[union-attr]
            result.append((step.number, list(batch.ids), batch.text.ids_N.tolist(), features))
    return result


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other) and all(np.array_equal(a[3], b[3]) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------------------------------- real servers, all kinds


@pytest.fixture(scope="module")
def s3(local: Dataset) -> Iterator[str]:
    """The shards in a bucket of a real S3 server; credentials and endpoint in the environment, as a user gives them."""
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": host,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="shards")
        folder = Path(local.directory)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), "shards", f"a/b/{path.relative_to(folder)}")
        yield "s3://shards/a/b"
    server.stop()


@pytest.fixture(params=["http", "http without parts", "s3"])
def url(request: pytest.FixtureRequest, local: Dataset) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "s3":
            yield request.getfixturevalue("s3")
        else:
            yield stack.enter_context(serving(Path(local.directory), ranges=request.param == "http")).url


def test_every_sample_is_as_it_is_locally(url: str, local: Dataset, tmp_path: Path) -> None:
    remote = opened(url, tmp_path)
    assert remote.directory == url
    assert remote.index.manifest == local.index.manifest
    everything = {"image": True, "regions": True, "texts": True}
    for shard in range(SHARDS):
        for field in ("shard_S", "row_S", "sample_E", "tokens_E"):
            one, other = (getattr(data.open_block([shard])[0], field) for data in (local, remote))
            assert one.tolist() == other.tolist()
        for row in range(PER_SHARD):
            one, other = (data.read(shard, row, **everything) for data in (local, remote))
            assert (one.key, one.captions) == (other.key, other.captions)
            assert one.regions is not None
            assert other.regions is not None
            assert np.array_equal(one.regions.features_RD, other.regions.features_RD)


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_are_as_they_are_locally(url: str, local: Dataset, tmp_path: Path, workers: int) -> None:
    expected = content(list(loader(local)))
    assert same(content(list(loader(opened(url, tmp_path), workers=workers))), expected)


def test_an_evaluation_is_as_it_is_locally(url: str, local: Dataset, tmp_path: Path) -> None:
    def batches(data: Dataset) -> list[Any]:
        given = {"image_tokens": int, "micro_tokens": 60, "seed": 0, "world_size": 2}
        ranks = [EvaluationLoader(data, Plain(), rank=rank, **given) for rank in range(2)]
        return content([step for rank in ranks for step in rank])

    assert same(batches(opened(url, tmp_path, shards=3)), batches(local))


# ----------------------------------------------------------------------------------------------------- servers that fail


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["500", "reset", "cut", "stall", "wrong"])
def test_what_fails_once_is_fetched_again(fault: Any, ranges: bool, local: Dataset, tmp_path: Path) -> None:
    with serving(Path(local.directory), ranges=ranges) as files:
        table = names(local)[1].replace(".tar", ".npz")
        files.faults = {name: [fault] for name in ("manifest.json", names(local)[0], names(local)[1], table)}
        remote = opened(files.url, tmp_path)
        for shard in range(3):
            one, other = (d.read(shard, 1, image=False, regions=True, texts=True) for d in (local, remote))
            assert repr(one) == repr(other)
        assert not any(files.faults.values()), "each was met"


def test_a_run_goes_on_through_many_faults(local: Dataset, server: FileServer, tmp_path: Path) -> None:
    kinds: list[Any] = ["500", "cut", "reset", "wrong", "stall", "cut", "500"]
    server.faults = {name: kinds[number % 4 :] for number, name in enumerate(names(local))}
    assert same(content(list(loader(opened(server.url, tmp_path, tries=9)))), content(list(loader(local))))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", r"cannot be fetched, 2 tries failed \(ClientResponseError: 500"),
        ("cut", r"cannot be fetched, 2 tries failed"),
        ("stall", r"cannot be fetched, 2 tries failed"),
        (
            "wrong",
            r"its bytes are not those of the index \(BLAKE2b [0-9a-f]{32}, not [0-9a-f]{32}\), after 3 downloads",
        ),
        ("403", r"access is denied .*give credentials in the environment as aiohttp expects them"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_keeps_failing_ends_the_run_with_its_name(
    fault: Any, message: str, workers: int, server: FileServer, local: Dataset, tmp_path: Path
) -> None:
    server.always = dict.fromkeys(names(local), fault)
    remote = opened(server.url, tmp_path, tries=2)
    (step,) = loader(remote, last=1, workers=workers)
    assert re.search(rf"^{re.escape(server.url)}/shard-00000\d\.tar: {message}", step.failure), step.failure
    assert "\n" not in step.failure
    assert not step.quarantined, "a shard that cannot be fetched is no bad sample: thousands would be lost quietly"
    kept = {path.stat().st_size for path in (tmp_path / "files").glob("*[!.partial]")}
    assert not kept & set(sizes(local).values()), "nothing half-written under a final name"


def test_a_shard_that_is_not_there(local: Dataset, tmp_path: Path) -> None:
    shutil.copytree(local.directory, tmp_path / "data")
    (tmp_path / "data" / names(local)[2]).unlink()
    with serving(tmp_path / "data") as files:
        remote = opened(files.url, tmp_path / "cache")
        with pytest.raises(DataError, match=r"/shard-000002\.tar: is not there; upload the shards with their index/"):
            remote.read(2, 0, image=False, regions=False, texts=True)


def test_a_directory_without_an_index_says_how_to_make_one(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as files,
        pytest.raises(
            DataError, match=r"/data/index/manifest\.json: is not there.*indexed before it is uploaded: `vlp-data"
        ),
    ):
        opened(files.url, tmp_path / "cache")


def test_a_damaged_index_is_refused_by_name(local: Dataset, server: FileServer, tmp_path: Path) -> None:
    server.always = {"manifest.json": "wrong"}
    with pytest.raises(DataError, match=r"index/manifest\.json: is not valid JSON; index the local shards again"):
        opened(server.url, tmp_path)
    server.always = {names(local)[1].replace(".tar", ".npz"): "wrong"}
    remote = opened(server.url, tmp_path)
    with pytest.raises(DataError, match=r"/index/.*shard-000001\.npz: cannot be used \(.*\); index the local shards"):
        remote.open_block([1])


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
def bare(local: Dataset, tmp_path: Path) -> Iterator[FileServer]:
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
    shutil.copytree(Path(local.directory) / LENGTHS, bare.directory / LENGTHS)
    (bare.directory / LENGTHS / "shard-000001.npz").unlink()
    remote = opened(bare.url, tmp_path / "cache")
    with pytest.raises(DataError, match=r"shard-000001\.npz: is not there.*token lengths lie there of other shards"):
        remote.open_block([1])


# ---------------------------------------------------------------------------------------------------------- many shards


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
    steps = iter(made)
    assert not next(steps).failure
    time.sleep(0.5)  # the worker waits for the second block by now
    begin = time.monotonic()
    steps.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begin < 15
    assert not multiprocessing.active_children()
