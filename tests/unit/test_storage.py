from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlp.data import storage
from vlp.data.storage import Absent, Storage, pause, remote_url
from vlp.errors import ConfigError, DataError

DATA = bytes(range(256)) * 5


class FakeFiles:
    """A filesystem of one file whose answers are what `answer(start, end)` gives or raises."""

    async_impl = False

    def __init__(self, answer: Callable[[int, int], bytes]) -> None:
        self.answer = answer
        self.asked: list[tuple[int, int]] = []

    def _strip_protocol(self, url: str) -> str:
        return url

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        return self.answer(start, end)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that would have been made."""
    pauses: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    monkeypatch.setattr(storage, "_PIECE", 500)
    return pauses


def opened(monkeypatch: pytest.MonkeyPatch, answer: Callable[[int, int], bytes], tries: int = 4) -> tuple:
    files = FakeFiles(answer)
    monkeypatch.setattr(Storage, "_open", lambda self: files)
    return Storage("x3://bucket", tries=tries, timeout=1), files


def fetched(source: Storage, target: Path, size: int = len(DATA)) -> str:
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT)
    try:
        return source.download("s.tar", size, descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        ("HTTPS://host:80/a", "https://host:80/a"),
        (Path("hf://datasets/org/name@main/a"), "hf://datasets/org/name@main/a"),
        ("data/train", None),
        (Path("/folder/train"), None),
        ("c:/data", None),
        ("a b://c", None),
        ("s3://", None),
        ("", None),
    ],
)
def test_urls(given: Path | str, url: str | None) -> None:
    assert remote_url(given) == url


def test_pauses_double_and_differ() -> None:
    pauses = [pause("a", attempt) for attempt in range(1, 12)]
    for number, seconds in enumerate(pauses):
        middle = min(0.5 * 2**number, 30)
        assert 0.5 * middle <= seconds <= 1.5 * middle
    assert pauses == [pause("a", attempt) for attempt in range(1, 12)]
    assert pauses[0] != pause("b", 1)


def test_a_file_comes_in_pieces_that_are_each_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slept: list[float]
) -> None:
    faults = {0: [OSError("reset"), TimeoutError()], 500: ["short"], 1000: [RuntimeError("any kind")]}

    def answer(start: int, end: int) -> bytes:
        if faults[start]:
            fault = faults[start].pop()
            if isinstance(fault, str):
                return DATA[start : end - 1]
            raise fault
        return DATA[start:end]

    source, files = opened(monkeypatch, answer)
    assert fetched(source, tmp_path / "s.tar") == hashlib.blake2b(DATA, digest_size=16).hexdigest()
    assert (tmp_path / "s.tar").read_bytes() == DATA
    assert files.asked == [(0, 500)] * 3 + [(500, 1000)] * 2 + [(1000, 1280)] * 2
    assert len(slept) == 4


def test_the_tries_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slept: list[float]) -> None:
    source, files = opened(monkeypatch, lambda start, end: DATA[start : end - 1])
    message = (
        r"^x3://bucket/s\.tar: cannot be fetched, 4 tries failed \(ValueError: 499 bytes came where 500 were asked"
    )
    with pytest.raises(DataError, match=message) as caught:
        fetched(source, tmp_path / "s.tar")
    assert "\n" not in str(caught.value)
    assert len(files.asked) == 4
    assert slept == [pause("s.tar", attempt) for attempt in (1, 2, 3)]


class NoCredentialsError(Exception):
    """Called as botocore's."""


class _Status(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("x"), "is not there; upload the shards with their index/ beside them"),
        (PermissionError("no"), r"access is denied \(PermissionError: no\); give credentials in the environment as"),
        (NoCredentialsError("none"), "access is denied .*NoCredentialsError: none"),
        (_Status(404), "is not there"),
        (_Status(403), "access is denied"),
        (_Status(401), "access is denied"),
    ],
)
def test_what_no_try_would_mend_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, slept: list[float], error: Exception, message: str
) -> None:
    def answer(start: int, end: int) -> bytes:
        raise error

    source, files = opened(monkeypatch, answer)
    with pytest.raises(Absent, match=message):
        source.read("index/manifest.json", 10)
    assert len(files.asked) == 1
    assert not slept


@pytest.mark.parametrize("parts", [True, False])
def test_a_full_disk_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, slept: list[float], parts: bool) -> None:
    source, files = opened(monkeypatch, lambda start, end: DATA[start:end])
    monkeypatch.setattr(source, "_whole_only", not parts)
    monkeypatch.setattr(source, "_stream", lambda name: iter([files.cat_file(name, 0, len(DATA))]))
    descriptor = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(OSError, match="No space left"):
        source.download("s.tar", len(DATA), descriptor)
    os.close(descriptor)
    assert len(files.asked) == 1


def test_a_small_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    source, files = opened(monkeypatch, lambda start, end: DATA[start:end])
    assert source.read("index/a.npz", len(DATA)) == DATA
    with pytest.raises(DataError, match=r"x3://bucket/index/a\.npz: is larger than 99 bytes"):
        source.read("index/a.npz", 99)
    assert files.asked[-1] == (0, 100), "no more than that was asked for"


def test_real_fsspec_and_a_copy_by_pickle(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/vlp-test/a b#c.tar", DATA)
    for source in (made := Storage("memory://vlp-test", tries=1, timeout=1), pickle.loads(pickle.dumps(made))):
        assert source.read("a b#c.tar", 5000) == DATA
        with pytest.raises(Absent):
            source.read("none", 10)


@pytest.mark.parametrize(
    ("url", "module", "message"),
    [
        ("gs://b/x", "gcsfs", "^gs://b/x: needs the package gcsfs, which cannot be imported: pip install gcsfs$"),
        ("s3://b/x", "s3fs", "^s3://b/x: needs the package s3fs, .*pip install s3fs$"),
        (
            "https://h/x",
            "fsspec.implementations.http",
            "^https://h/x: needs the package aiohttp, .*pip install aiohttp$",
        ),
        ("az://b/x", "adlfs", "^az://b/x: needs the package adlfs, .*pip install adlfs$"),
        ("smb://h/x", "fsspec.implementations.smb", "^smb://h/x: needs another package"),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, url: str, module: str, message: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, url.partition(":")[0], raising=False)
    with pytest.raises(ConfigError, match=message):
        Storage(url, tries=1, timeout=1)


def test_another_kind_of_storage_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^gopher://h/x: 'gopher' is no storage that fsspec knows .*; give s3://"):
        Storage("gopher://h/x", tries=1, timeout=1)


def test_the_hub_s_filesystem_is_the_one_used() -> None:
    from huggingface_hub import HfFileSystem

    source = Storage("hf://datasets/org/name@main/train", tries=1, timeout=1)
    assert type(source._filesystem()) is HfFileSystem
    assert source._path("s.tar") == "datasets/org/name@main/train/s.tar"


def test_local_data_do_without_fsspec() -> None:
    """Importing it takes 0.1 s, and aiohttp or s3fs much longer."""
    code = "import sys, vlp.data.index; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
