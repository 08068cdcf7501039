"""An extraction that is killed, again and again, and one on several ranks: the same bytes in the same files."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from tests.distributed.ranks import _PRELOAD, run_on_ranks
from tests.unit.feature_making import samples, shards, trained
from tests.unit.folders import Killed, Renames, files_of
from tests.unit.task_making import text_encoder
from vlp import VisionLanguageModel
from vlp.data.dataset import Dataset
from vlp.data.index import open_index
from vlp.data.lengths import token_lengths
from vlp.distributed import World, world
from vlp.features.job import Request, extract_to
from vlp.features.preparing import Preparing
from vlp.features.sources import ShardSource

KILLS = 20
WHAT = "pooled,text,itm,attention"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    trained().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with a text that cannot be used among the others, so that something is quarantined."""
    folder = tmp_path_factory.mktemp("data")
    made = samples(30)
    made[8] = replace(made[8], captions=("red", "a" * (1 << 20) + "b", "blue"))
    shards(folder, given=made)
    return folder


def opened(model: Path, data: Path) -> tuple[VisionLanguageModel, ShardSource]:
    loaded, encoder, index = VisionLanguageModel.from_pretrained(model), text_encoder(), open_index(data)
    dataset = Dataset(index, "captions", token_lengths(index, encoder.count, encoder.fingerprint, 16))
    return loaded, ShardSource(dataset, Preparing(loaded))


def extraction(model: Path, data: Path, out: Path, format: str, world: World) -> tuple[int, int, int]:
    request = Request(WHAT, format, part_examples=4)  # type: ignore[arg-type]
    done = extract_to(out, *opened(model, data), request, world, micro_tokens=60)
    return done.rows, done.quarantined, done.before


def visible(folder: Path) -> dict[str, bytes]:
    """What a reader sees: all but the work in progress."""
    found = files_of(folder) if folder.exists() else {}
    return {name: data for name, data in found.items() if not name.startswith(".work")}


def killing(end: Connection, model: Path, data: Path, out: Path, kills: int) -> None:
    """An uninterrupted extraction, and one that is killed again and again; its processes are forked from this one, so
    that none has to load the model. Says what was there after each kill."""
    torch.set_num_threads(1)
    given, request, rng = opened(model, data), Request(WHAT, part_examples=3), random.Random(5)

    def start(folder: Path) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                with world() as ranks:
                    extract_to(folder, *given, request, ranks, micro_tokens=60)
            finally:
                os._exit(0)
        return pid

    os.waitpid(start(out / "whole"), 0)
    seen = []
    for _ in range(kills):
        if (out / "killed" / "manifest.json").exists():  # it was done before the last blow fell: begin anew
            shutil.rmtree(out / "killed")
        wanted = len(visible(out / "killed")) + rng.randrange(3)
        pid, ended = start(out / "killed"), False
        while len(list((out / "killed").glob("*.parquet"))) < wanted and not ended:
            time.sleep(0.001)
            ended = os.waitpid(pid, os.WNOHANG)[0] != 0
        if not ended:
            time.sleep(rng.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)  # one that has just ended waits to be reaped, and takes it
            os.waitpid(pid, 0)
        seen.append(visible(out / "killed"))
    os.waitpid(start(out / "killed"), 0)
    end.send(seen)


def test_killed_at_random_points_it_ends_with_the_same_bytes(model: Path, data: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    here, there = context.Pipe()
    process = context.Process(target=killing, args=(there, model, data, tmp_path, KILLS))
    process.start()
    there.close()
    seen: list[dict[str, bytes]] = here.recv()
    process.join()
    wanted = files_of(tmp_path / "whole")
    assert len(wanted) >= 20, "manifest, quarantine and the parts"
    assert json.loads(wanted["manifest.json"])["quarantined"] == 1
    assert len(seen) == KILLS
    assert all(each.items() <= wanted.items() for each in seen), "nothing half or wrong is ever visible"
    unfinished = [len(each) for each in seen if "manifest.json" not in each]
    assert len(unfinished) > KILLS / 2, "most kills came before the end"
    assert len(set(unfinished)) > 5, "and at different points"
    assert files_of(tmp_path / "killed") == wanted


def test_killed_before_each_change_of_the_disk_it_ends_with_the_same_bytes(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rename and every start of writing a file, one after the other: the points that matter."""
    with world() as ranks:
        for format in ("npz", "webdataset"):
            _killed_at_each_change(model, data, tmp_path / format, format, monkeypatch, ranks)
            monkeypatch.undo()


def _killed_at_each_change(
    model: Path, data: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch, ranks: World
) -> None:
    assert extraction(model, data, tmp_path / "whole", format, ranks)[2] == 0
    wanted = files_of(tmp_path / "whole")
    out, renames, deaths = tmp_path / "killed", Renames(monkeypatch), 0
    while True:
        renames.left = deaths % 6  # a run lives for up to five changes; closing takes four
        try:
            extraction(model, data, out, format, ranks)
        except Killed:
            deaths += 1
            assert visible(out).items() <= wanted.items()
            assert deaths < 200
            continue
        break
    assert deaths > 20
    assert files_of(out) == wanted


@pytest.mark.parametrize("format", ["parquet", "safetensors", "webdataset"])
def test_ranks_write_the_same_files(format: str, model: Path, data: Path, tmp_path: Path) -> None:
    given = {"model": model, "data": data, "format": format}
    two = run_on_ranks(2, on_ranks, out=tmp_path / "two", **given)
    assert two[0] == two[1]
    three = run_on_ranks(3, on_ranks, out=tmp_path / "three", **given)
    assert three[0] == two[0]
    run_on_ranks(1, on_ranks, out=tmp_path / "one", **given)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two") == files_of(tmp_path / "three")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert sum(part["rows"] for part in manifest["parts"]) == manifest["rows"] == two[0][0]


def on_ranks(world: World, model: Path, data: Path, out: Path, format: str) -> tuple[int, int, int]:
    torch.set_num_threads(1)
    return extraction(model, data, out, format, world)


def test_what_two_ranks_left_one_goes_on_with(model: Path, data: Path, tmp_path: Path) -> None:
    run_on_ranks(2, on_ranks, model=model, data=data, out=tmp_path / "out", format="parquet")
    wanted = files_of(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").rename(tmp_path / "manifest.json")
    # As if the second rank had been lost: every second part is gone, and the request is still there.
    request = json.loads((tmp_path / "manifest.json").read_text())["request"]
    (tmp_path / "out" / ".work").mkdir()
    (tmp_path / "out" / ".work" / "request.json").write_text(json.dumps(request))
    again = run_on_ranks(1, on_ranks, model=model, data=data, out=tmp_path / "out", format="parquet")
    assert again[0][2] == 0, "parts without their records are made again"
    assert files_of(tmp_path / "out") == wanted
