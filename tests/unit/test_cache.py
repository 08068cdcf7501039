from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp.data.cache import Cache, CacheConfig, Fill, NoRoom, Reserve
from vlp.data.sharedfile import close_shared, read_shared
from vlp.errors import ConfigError, DataError


def content(key: str, size: int) -> bytes:
    return (key * size).encode()[:size]


def filler(key: str, size: int, done: list[str] | None = None) -> Fill:
    def fill(descriptor: int, reserve: Reserve) -> None:
        reserve(size)
        os.pwrite(descriptor, content(key, size), 0)
        if done is not None:
            done.append(key)

    return fill


def read(cache: Cache, key: str, size: int, done: list[str] | None = None) -> bytes:
    """The whole file, made where it is not there."""
    descriptor = cache.obtain(key, filler(key, size, done), size)
    data = read_shared(descriptor, size, 0)
    os.close(descriptor)
    assert data is not None
    return data


def files(directory: Path) -> dict[str, int]:
    found = {}
    for path in (directory / "files").iterdir():
        with suppress(FileNotFoundError):  # a fetch that failed has just removed it
            found[path.name] = path.stat().st_size
    return found


def age(directory: Path, *keys: str) -> None:
    """Let the files have been used long ago, the first one longest."""
    for number, key in enumerate(keys):
        os.utime(directory / "files" / key, (1000 + number, 1000 + number))


def test_a_file_is_made_once(tmp_path: Path) -> None:
    done: list[str] = []
    for _ in range(2):
        assert read(Cache(tmp_path, 100), "a", 30, done) == content("a", 30)
    assert done == ["a"]
    assert files(tmp_path) == {"a": 30}


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(descriptor: int, reserve: Reserve) -> None:
        reserve(30)
        os.pwrite(descriptor, b"half", 0)
        raise DataError("a sentence")

    cache = Cache(tmp_path, 40)
    for _ in range(3):  # the room of a failed one is free again
        with pytest.raises(DataError, match="a sentence"):
            cache.obtain("a", broken, 30)
        assert files(tmp_path) == {}
    assert read(cache, "b", 40) == content("b", 40)


def test_the_least_recently_used_is_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    for key in "abc":
        read(cache, key, 30)
    age(tmp_path, "b", "a", "c")
    read(cache, "a", 30)
    read(cache, "d", 30)
    assert files(tmp_path) == {"a": 30, "c": 30, "d": 30}
    read(cache, "e", 95)
    assert files(tmp_path) == {"e": 95}


def test_reading_counts_as_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 60)
    descriptor = cache.obtain("a", filler("a", 30))
    read(cache, "b", 30)
    age(tmp_path, "a", "b")
    assert read_shared(descriptor, 30, 0) == content("a", 30)
    read(cache, "c", 30)
    assert set(files(tmp_path)) == {"a", "c"}
    os.close(descriptor)


def test_what_is_being_read_is_not_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 60)
    held = cache.obtain("a", filler("a", 30))  # locked until its first read
    read(cache, "b", 30)
    age(tmp_path, "a", "b")
    read(cache, "c", 30)
    assert set(files(tmp_path)) == {"a", "c"}
    thread = threading.Thread(target=read, args=(cache, "d", 60), daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "it waits for the room of what is being read"
    assert "a" in files(tmp_path)
    assert read_shared(held, 30, 0) == content("a", 30)
    thread.join(10)
    assert not thread.is_alive()
    assert read_shared(held, 30, 0) is None, "after the read it may go, and whoever has it open is told"
    assert os.fstat(held).st_size == 0, "and its room is free although it is open"
    os.close(held)


def test_files_fetched_ahead_take_the_place_only_of_what_is_old(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 60)
    read(cache, "a", 30)
    read(cache, "b", 30)
    age(tmp_path, "a")
    cache.fetch_ahead("c", filler("c", 30), older_than=2000)
    assert set(files(tmp_path)) == {"b", "c"}
    with pytest.raises(NoRoom):
        cache.fetch_ahead("d", filler("d", 30), older_than=2000)
    assert set(files(tmp_path)) == {"b", "c"}
    cache.fetch_ahead("d", filler("d", 30))
    assert set(files(tmp_path)) == {"c", "d"}


def test_what_another_fetches_is_not_fetched_ahead(tmp_path: Path) -> None:
    cache, done = Cache(tmp_path, 100), []
    started, go = threading.Event(), threading.Event()

    def slow(descriptor: int, reserve: Reserve) -> None:
        started.set()
        go.wait(10)
        filler("a", 30, done)(descriptor, reserve)

    thread = threading.Thread(target=lambda: os.close(cache.obtain("a", slow)), daemon=True)
    thread.start()
    started.wait(10)
    before = time.monotonic()
    cache.fetch_ahead("a", filler("a", 30, done))
    assert time.monotonic() - before < 1
    assert done == []
    go.set()
    assert read(cache, "a", 30, done) == content("a", 30)
    thread.join(10)
    assert done == ["a"]


def test_a_file_of_another_size_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    read(cache, "a", 30)
    os.truncate(tmp_path / "files" / "a", 7)
    assert read(cache, "a", 30) == content("a", 30)


def test_a_small_file_that_is_refused_is_made_again(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path, 100), []

    def fill(descriptor: int, reserve: Reserve) -> None:
        made.append(1)
        reserve(1)
        os.pwrite(descriptor, b"y" if len(made) > 1 else b"x", 0)

    def parse(data: bytes) -> str:
        if data != b"y":
            raise ValueError("not y")
        return "parsed"

    assert cache.load("k", fill, parse) == cache.load("k", fill, parse) == "parsed"
    assert len(made) == 2
    with pytest.raises(ValueError, match="not y"):
        cache.load("other", filler("x", 1), parse)
    assert "other" not in files(tmp_path)


def test_a_file_larger_than_the_cache_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.cache\.bytes: a file of 101 bytes does not fit into 100; raise it$"):
        Cache(tmp_path, 100).obtain("a", filler("a", 101))


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    def fill(descriptor: int, reserve: Reserve) -> None:
        reserve(30)
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(DataError, match=r"the disk is full; free some of it, lower data\.cache\.bytes"):
        Cache(tmp_path, 100).obtain("a", fill)
    assert files(tmp_path) == {}


def test_a_folder_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^data\.cache\.dir: .*file/cache cannot be made"):
        Cache(tmp_path / "file" / "cache", 100)
    cache = Cache(tmp_path / "cache", 100)
    (tmp_path / "cache" / "files").rmdir()
    with pytest.raises(DataError, match="cannot be used as a cache: No such file"):
        cache.obtain("a", filler("a", 1))


def test_room_that_was_lost_is_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    read(cache, "a", 60)
    (tmp_path / "files" / "a").unlink()  # by hand
    assert (tmp_path / "total").read_text() == "60"
    read(cache, "b", 60)
    read(cache, "c", 40)
    assert files(tmp_path) == {"b": 60, "c": 40}
    (tmp_path / "total").write_text("not a number")
    read(cache, "d", 10)
    assert "d" in files(tmp_path)
    assert sum(files(tmp_path).values()) <= 100


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=30), st.integers(20, 90))
def test_the_limit_is_kept_and_the_bytes_are_right(tmp_path_factory: pytest.TempPathFactory, asked, limit) -> None:
    directory = tmp_path_factory.mktemp("cache")
    cache = Cache(directory, limit)
    for key, ahead in asked:
        size = 3 + 2 * (ord(key) - ord("a"))
        if ahead:
            cache.fetch_ahead(key, filler(key, size), size=size)
        else:
            assert read(cache, key, size) == content(key, size)
        assert sum(files(directory).values()) <= limit


def _process(work: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)  # type: ignore[attr-defined]
    process.start()
    return process


def _hammer(directory: Path, number: int) -> None:
    """Read files in an order of its own, and look at the bytes each time."""
    cache = Cache(directory, 100)
    held: dict[str, int] = {}
    for turn in range(150):
        key = "abcdefgh"[(turn * (2 * number + 1) + number) % 8]
        if turn % 3:
            assert read(cache, key, 30) == content(key, 30)
        else:  # as a reader of shards does: the descriptor stays open
            descriptor = held.setdefault(key, -1)
            data = read_shared(descriptor, 5, 10) if descriptor >= 0 else None
            if data is None:
                held[key] = cache.obtain(key, filler(key, 30), 30)
                data = read_shared(held[key], 5, 10)
            assert data == content(key, 30)[10:15]
        with cache._counted():
            assert sum(files(directory).values()) <= 100
    os._exit(0)


def test_processes_share_a_cache_that_is_too_small(tmp_path: Path) -> None:
    Cache(tmp_path, 100)
    processes = [_process(_hammer, tmp_path, number) for number in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def _count(directory: Path, log: Path) -> None:
    def fill(descriptor: int, reserve: Reserve) -> None:
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        filler("a", 30)(descriptor, reserve)

    cache = Cache(directory, 100)
    descriptor = cache.obtain("a", fill, 30)
    assert read_shared(descriptor, 30, 0) == content("a", 30)
    os._exit(0)


def test_one_process_fetches_while_the_others_wait(tmp_path: Path) -> None:
    processes = [_process(_count, tmp_path, tmp_path / "log") for _ in range(4)]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "made\n"


def _die(directory: Path) -> None:
    def fill(descriptor: int, reserve: Reserve) -> None:
        reserve(80)
        os.kill(os.getpid(), signal.SIGKILL)

    Cache(directory, 100).obtain("a", fill, 80)


def test_a_process_that_dies_leaves_room_and_no_lock(tmp_path: Path) -> None:
    process = _process(_die, tmp_path)
    process.join(30)
    assert files(tmp_path) == {"a.partial": 80}
    cache = Cache(tmp_path, 100)
    assert read(cache, "b", 30) == content("b", 30)  # the partial file makes room
    assert files(tmp_path) == {"b": 30}
    process = _process(_die, tmp_path)
    process.join(30)
    assert read(cache, "a", 80) == content("a", 80)
    assert files(tmp_path)["a"] == 80


def test_a_lock_does_not_stay_with_a_forked_child(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    descriptor = cache.obtain("a", filler("a", 60))
    other = cache.open("a")
    assert other is not None
    child = _process(time.sleep, 20)
    begin = time.monotonic()
    assert read_shared(descriptor, 3, 0) == b"aaa"
    close_shared(other)
    read(cache, "b", 60)
    assert files(tmp_path) == {"b": 60}
    assert time.monotonic() - begin < 10
    child.kill()
    child.join()


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert CacheConfig().directory == Path("/somewhere/vlp")
    assert CacheConfig.parse({"bytes": "2.5GB", "dir": "~/x"}).bytes == 2_500_000_000
    assert CacheConfig.parse({"dir": "~/x"}).directory == Path.home() / "x"
    assert CacheConfig.parse(CacheConfig.parse({"bytes": "1GiB"}).plain()).bytes == 1 << 30
    for wrong in ("many", "3 parsecs"):
        with pytest.raises(ConfigError, match="should be a number of bytes, as in 200GB"):
            CacheConfig.parse({"bytes": wrong})
    with pytest.raises(ConfigError, match="bytes"):
        CacheConfig.parse({"bytes": 0})


def test_locks_are_those_of_the_files(tmp_path: Path) -> None:
    """What other tests take for granted: two openings of a file in one process have locks of their own."""
    (tmp_path / "x").touch()
    one, two = (os.open(tmp_path / "x", os.O_RDONLY) for _ in range(2))
    fcntl.flock(one, fcntl.LOCK_SH)
    with pytest.raises(BlockingIOError):
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(one)
    os.close(two)
