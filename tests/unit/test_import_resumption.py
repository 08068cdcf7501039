"""Imports that were killed or interrupted: they go on as if nothing had been, or say why not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_tools import journal
from data_tools.importing import run as import_run
from tests.unit.folders import files_of
from tests.unit.import_running import import_tsv, samples_of, table_of_photos, vlp_data
from tests.unit.shard_making import photo
from vlp.data.index import open_index
from vlp.data.scan import scan_shard


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return table_of_photos(tmp_path)


def _larger_table(path: Path, count: int) -> None:
    """A table of so many larger photos, whose import takes long enough to be stopped."""
    data = photo(1, (400, 300))
    (path / "images").mkdir()
    for number in range(count):
        (path / "images" / f"{number:03d}.jpg").write_bytes(data)
    (path / "x.tsv").write_text("\n".join(f"{number:03d}.jpg\tcaption" for number in range(count)))


def _start(source: Path, out: Path, *more: object) -> subprocess.Popen[bytes]:
    words = ("tsv", "--file", source / "x.tsv", "--images", source / "images", "--out", out, *more)
    command = [sys.executable, "-m", "data_tools.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    """A process that has ended but that nobody has asked about is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_a_killed_import_goes_on_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _larger_table(tmp_path, 120)
    more = ("--samples-per-shard", 3, "--resize", 100, "--workers", 2)
    process = _start(tmp_path, out, *more)
    while len(list(out.glob("*.tar"))) < 4:
        assert process.poll() is None
        time.sleep(0.002)
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    end = time.monotonic() + 10
    while any(map(_runs, workers)):
        assert time.monotonic() < end, "a worker outlives the command"
        time.sleep(0.01)
    assert len(workers) == 2

    finished = {path.name: path.stat() for path in out.glob("*.tar")}
    assert 4 <= len(finished) < 40
    assert all(len(scan_shard(out / name)) == 3 for name in finished)
    assert not (out / "index" / "manifest.json").exists()
    (out / ".shard-000039.tar.1.partial").write_bytes(b"left behind")

    words = ("tsv", "--file", tmp_path / "x.tsv", "--images", tmp_path / "images", *more)
    assert vlp_data(*words, "--out", out) == 0
    for name, before in finished.items():
        now = (out / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), f"{name} was written again"
    assert vlp_data(*words, "--out", tmp_path / "whole") == 0
    assert files_of(out) == files_of(tmp_path / "whole")
    assert len(samples_of(out)) == 120


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_import_says_how_to_go_on(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    _larger_table(tmp_path, 100)
    process = _start(tmp_path, out, "--samples-per-shard", 2, "--workers", workers)
    while len(list(out.glob("*.tar"))) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode()
    assert said == f"vlp-data: {out}: stopped; say the same command again to go on\n"
    assert process.returncode == 1
    assert not list(out.glob(".*.partial"))


class _Crash(Exception):
    pass


def _half(source: Path, *more: object, after: int = 4) -> Path:
    """An import that stops after some shards."""
    out = source / "out"
    made = []
    real = import_run.__dict__["make_shard"]

    def failing(*arguments: Any) -> Any:
        if len(made) == after:
            raise _Crash
        made.append(real(*arguments))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(import_run.__dict__, "make_shard", failing)
        with pytest.raises(_Crash):
            import_tsv(source, out, "--workers", 1, *more)
    assert len(list(out.rglob("*.tar"))) == after
    return out


@pytest.mark.parametrize("more", [(), ("--split", "a=0.4,b=0.6", "--drop-duplicates")])
def test_an_import_goes_on_after_an_error(source: Path, more: tuple[object, ...]) -> None:
    out = _half(source, *more)
    assert (out / ".import" / "plan.json").exists()
    assert import_tsv(source, out, *more) == 0
    assert import_tsv(source, source / "whole", *more) == 0
    assert files_of(out) == files_of(source / "whole")
    assert import_tsv(source, out, *more) == 1  # finished: refused as any other


@pytest.mark.parametrize("part", ["", "b"])
def test_an_unfinished_import_is_not_indexed(source: Path, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = _half(source, *(("--split", "a=0.4,b=0.6") if part else ()))
    capsys.readouterr()
    assert vlp_data("index", out / part) == 1
    assert "holds an unfinished import, so shards are missing; finish it with the same `vlp-data tsv`" in (
        capsys.readouterr().err
    )


def test_hashes_are_not_made_twice(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = _half(source, "--drop-duplicates")
    monkeypatch.setattr("data_tools.importing.making.content_hash", None)
    assert import_tsv(source, out, "--drop-duplicates", "--workers", 1) == 0


def test_another_import_does_not_take_over(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _half(source)
    before = files_of(out)
    capsys.readouterr()
    assert import_tsv(source, out, "--resize", 20) == 1
    said = capsys.readouterr().err
    assert f"{out}: holds an unfinished import of something else (resize: none there, 20 here)" in said
    assert "--overwrite" in said
    assert files_of(out) == before
    assert import_tsv(source, out, "--resize", 20, "--overwrite") == 0
    assert import_tsv(source, source / "whole", "--resize", 20) == 0
    assert files_of(out) == files_of(source / "whole")


@pytest.mark.parametrize("change", ["table grew", "caption", "image", "image is there now"])
def test_a_changed_source_is_refused(source: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = _half(source)
    table, photos = source / "x.tsv", source / "images"
    if change == "table grew":
        table.write_text(table.read_text() + "\np1.jpg\tone more")
    elif change == "caption":
        table.write_text(table.read_text().replace("caption 2 of 1\n", "caption 3 of 1\n"))
    elif change == "image":
        (photos / "p1.jpg").write_bytes(photo(99))
    else:
        (photos / "p4.jpg").write_bytes(photo(99))
    capsys.readouterr()
    assert import_tsv(source, out) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert not (out / "index" / "manifest.json").exists()
    assert import_tsv(source, out, "--overwrite") == 0
    assert import_tsv(source, source / "whole") == 0
    assert files_of(out) == files_of(source / "whole")


def test_a_source_that_shrank_leaves_no_shard_behind(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = source / "images", source / "out"
    for path in folder.glob("*.jpg"):
        path.with_suffix(".txt").write_text("a caption")
    words = ("folder", "--images", folder, "--out", out, "--samples-per-shard", 3, "--workers", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(import_run.__dict__, "build_index", None)
        with pytest.raises(TypeError):
            vlp_data(*words)
    assert len(list(out.glob("*.tar"))) == 7
    (folder / "p8.txt").unlink()  # the last two by name, so that the shards before are as they were
    (folder / "p7.txt").unlink()
    assert vlp_data(*words) == 1
    assert "was made of records that the source no longer has" in capsys.readouterr().err
    assert vlp_data(*words, "--overwrite") == 0
    assert len(open_index(out).manifest.shards) == 6


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "copied"])
def test_a_finished_shard_is_kept_if_it_is_whole(source: Path, damage: str) -> None:
    out = _half(source)
    path = out / "shard-000001.tar"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "changed":
        path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    elif damage == "gone":
        path.unlink()
    else:  # another time stamp, the same bytes
        path.write_bytes(data)
    stamp = path.stat().st_mtime_ns if damage != "gone" else 0
    assert import_tsv(source, out) == 0
    assert (path.stat().st_mtime_ns == stamp) == (damage == "copied")
    assert import_tsv(source, source / "whole") == 0
    assert files_of(out) == files_of(source / "whole")


def test_two_imports_do_not_write_to_one_directory(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(journal, "_PATIENCE", 0)
    out = source / "out"
    with journal.Journal(out).locked():
        assert import_tsv(source, out) == 1
    assert f"{out}: another import is writing here" in capsys.readouterr().err
    assert import_tsv(source, out) == 0
