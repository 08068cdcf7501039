"""The main job on remote data: the commands of a user, data on a real server on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.fileserver import FileServer, serving
from tests.e2e.conftest import Shapes, done, evaluation_of, steps_of, vlp, vlp_data
from vlp.config import read_yaml


@pytest.fixture
def server(shapes: Shapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """The rendered world, without what a local run has left beside its index."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("train", "dev"):
        shutil.copytree(
            shapes.train.parent / name, tmp_path / "world" / name, ignore=shutil.ignore_patterns("lengths-*")
        )
    with serving(tmp_path / "world") as files:
        yield files


def test_a_run_on_remote_data_walks_the_curve_of_a_local_one(
    server: FileServer, pretrain_single: tuple[str, ...], single: Path, shapes: Shapes, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    places = (f"data.train={server.url}/train", f"data.val={server.url}/dev")
    cache = ("data.cache.bytes=200MB", "data.block_shards=8", "data.workers=1")
    done(vlp(*pretrain_single, *places, *cache, f"run.dir={run}"))
    assert [line["loss"] for line in steps_of(run)] == [line["loss"] for line in steps_of(single)]
    assert evaluation_of(run) == evaluation_of(single)
    resolved = read_yaml(run / "config.yaml")["data"]
    assert resolved["train"][0]["path"] == f"{server.url}/train"
    assert resolved["cache"]["bytes"] == 200_000_000
    sizes = {
        path.name: path.stat().st_size for name in ("train", "dev") for path in (server.directory / name).glob("*.tar")
    }
    assert server.shards.keys() == sizes.keys()
    files = [path for path in (tmp_path / "cache" / "vlp" / "files").iterdir() if path.stat().st_size > 20_000]
    assert len(files) == len(list(server.directory.rglob("*.tar")))

    out = tmp_path / "report.json"
    done(vlp("evaluate", "--model", run / "model", "--data", f"{server.url}/dev", "--out", out))
    report = json.loads(out.read_text())
    assert report["data"] == f"{server.url}/dev"
    assert report["metrics"]["mlm_accuracy"] == pytest.approx(evaluation_of(single)["mlm_accuracy"])


def test_lengths_are_made_for_an_upload(server: FileServer, shapes: Shapes) -> None:
    folder = server.directory / "train"
    said = done(vlp_data("index", folder, "--tokenizer", shapes.tokenizer))
    (lengths,) = (folder / "index").glob("lengths-*")
    assert said.out.splitlines()[-1] == f"token lengths: {lengths}"
    assert {path.stem for path in lengths.glob("*.npz")} == {path.stem for path in folder.glob("*.tar")}


def test_a_remote_directory_is_not_indexed(server: FileServer) -> None:
    said = vlp_data("index", f"{server.url}/train")
    assert said.code == 2
    assert said.err.startswith(
        f"vlp-data: {server.url}/train: is indexed before it is uploaded; index the local directory"
    )
    assert said.err.count("\n") == 1


def test_remote_data_can_be_inspected(server: FileServer) -> None:
    said = done(vlp_data("inspect", f"{server.url}/dev"))
    assert said.out.splitlines()[0] == f"{server.url}/dev"


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("{url}/none", "/none/index/manifest.json: is not there"),
        ("gopher://host/x", "gopher://host/x: 'gopher' is no storage that fsspec knows"),
        ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x/index/manifest.json: cannot be fetched, 2 tries failed"),
    ],
)
def test_a_mistake_gives_one_sentence(
    place: str, sentence: str, server: FileServer, pretrain_single: tuple[str, ...], tmp_path: Path
) -> None:
    place = place.format(url=server.url)
    said = vlp(*pretrain_single, f"data.train={place}", "data.cache.tries=2", f"run.dir={tmp_path / 'run'}")
    assert said.code in (1, 2)
    assert sentence in said.err
    assert said.err.startswith("vlp: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
