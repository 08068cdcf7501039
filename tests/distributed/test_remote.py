"""Remote data on real servers on loopback: what is read is what lies there, however the servers behave."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.fileserver import FileServer, serving
from tests.distributed.remotedata import PER_SHARD, SHARDS, Plain, content, loader, names, opened, same, sizes
from vlp.data.dataset import Dataset
from vlp.data.loader import EvaluationLoader
from vlp.data.manifest import INDEX
from vlp.errors import DataError

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


@pytest.fixture(params=["http", "http without parts", "s3", "hf"])
def url(request: pytest.FixtureRequest, local: Dataset, quick: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param == "s3":
            yield request.getfixturevalue("s3")
        elif request.param == "hf":
            # The hub's own filesystem, before a server that answers as the hub does to what it asks.
            from fsspec.config import conf
            from huggingface_hub import constants

            files = stack.enter_context(serving(Path(local.directory)))
            monkeypatch.setitem(conf, "hf", {"endpoint": files.url.removesuffix("/data")})
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            yield "hf://datasets/org/name"
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


# ---------------------------------------------------------------------------------------------------- servers that fail


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["500", "reset", "cut", "stall", "wrong"])
@pytest.mark.usefixtures("quick")
def test_what_fails_once_is_fetched_again(fault: Any, ranges: bool, local: Dataset, tmp_path: Path) -> None:
    with serving(Path(local.directory), ranges=ranges) as files:
        table = names(local)[1].replace(".tar", ".npz")
        files.faults = {name: [fault] for name in ("manifest.json", names(local)[0], names(local)[1], table)}
        remote = opened(files.url, tmp_path, timeout=0.5 if fault == "stall" else 20)
        for shard in range(3):
            one, other = (d.read(shard, 1, image=False, regions=True, texts=True) for d in (local, remote))
            assert repr(one) == repr(other)
        assert not any(files.faults.values()), "each was met"


def test_a_run_goes_on_through_many_faults(local: Dataset, server: FileServer, tmp_path: Path) -> None:
    kinds: list[Any] = ["500", "cut", "reset", "wrong", "cut", "500"]
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
def test_what_keeps_failing_ends_the_run_with_its_name(
    fault: Any, message: str, server: FileServer, local: Dataset, tmp_path: Path
) -> None:
    server.always = dict.fromkeys(names(local), fault)
    remote = opened(server.url, tmp_path, tries=2, timeout=0.5 if fault == "stall" else 20)
    (step,) = loader(remote, last=1, workers=fault == "500")
    assert re.search(rf"^{re.escape(server.url)}/shard-00000\d\.tar: {message}", step.failure), step.failure
    assert "\n" not in step.failure
    assert not step.quarantined, "a shard that cannot be fetched is no bad sample: thousands would be lost quietly"
    kept = {path.stat().st_size for path in (tmp_path / "files").glob("*[!.partial]")}
    assert not kept & set(sizes(local).values()), "nothing half-written under a final name"


@pytest.mark.usefixtures("quick")
def test_a_shard_that_is_not_there(local: Dataset, tmp_path: Path) -> None:
    shutil.copytree(local.directory, tmp_path / "data")
    (tmp_path / "data" / names(local)[2]).unlink()
    with serving(tmp_path / "data") as files:
        remote = opened(files.url, tmp_path / "cache")
        with pytest.raises(DataError, match=r"/shard-000002\.tar: is not there; upload the shards with their index/"):
            remote.read(2, 0, image=False, regions=False, texts=True)


@pytest.mark.usefixtures("quick")
def test_a_directory_without_an_index_says_how_to_make_one(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as files,
        pytest.raises(
            DataError, match=r"/index/manifest\.json: is not there.*indexed before it is uploaded: `vlp-data"
        ),
    ):
        opened(files.url, tmp_path / "cache")


def test_a_damaged_index_is_refused_by_name(local: Dataset, server: FileServer, tmp_path: Path) -> None:
    server.always = {"manifest.json": "wrong"}
    with pytest.raises(DataError, match=r"index/manifest\.json: is not valid JSON; index the local shards again"):
        opened(server.url, tmp_path)
    copied = tmp_path / "copy"
    shutil.copytree(local.directory, copied)
    tables = [copied / INDEX / name.replace(".tar", ".npz") for name in names(local)]
    shutil.copy(tables[0], tables[1])
    with serving(copied) as files:
        with pytest.raises(DataError, match=r"shard-000001\.npz: cannot be used \(does not fit the manifest\); index"):
            opened(files.url, tmp_path / "cache").open_block([1])
        manifest = copied / INDEX / "manifest.json"
        manifest.write_bytes(manifest.read_bytes().replace(b'"captions": 6', b'"captions": 7'))
        with pytest.raises(DataError, match=r"manifest\.json: is not as it was written, after 3 downloads"):
            opened(files.url, tmp_path / "cache")
    server.always = {names(local)[1].replace(".tar", ".npz"): "wrong"}
    remote = opened(server.url, tmp_path)
    with pytest.raises(DataError, match=r"/index/.*shard-000001\.npz: cannot be used \(.*\); index the local shards"):
        remote.open_block([1])
