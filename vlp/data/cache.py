"""Remote files kept on a local disk, in a directory of bounded size that all processes of a machine share.

All is told by the files themselves. A file is fetched under `<key>.partial` and renamed when it is whole, so nothing
half-written ever stands under its key. Whoever fetches it holds a lock (`flock`) on it, and the others wait for that
lock; whoever reads it holds one for the time of the read, and what is locked is not evicted. A process that dies leaves
no lock behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ByteSize, Field

from vlp.config import Config
from vlp.data.sharedfile import close_shared, lock_new, read_shared, remove_unused
from vlp.errors import ConfigError, DataError

_GB = 10**9
_SPARE = 64 << 20
"""Bytes that an eviction frees beyond those asked for, so that small files do not each walk the whole directory."""
_PARTIAL = ".partial"
FETCHES = 3
"""Times that a file is fetched whose bytes are not right: the way may have spoilt them, once."""

T = TypeVar("T")


class CacheConfig(Config):
    """Where remote data are kept on this machine, and how they are fetched."""

    dir: str | None = None
    """A folder on a local disk; null for `vlp` in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache)."""
    bytes: ByteSize = Field(ByteSize(50 * _GB), gt=0)
    """Most bytes that shards and their tables may take there, as in 200GB; what was used longest ago makes room."""
    downloads: int = Field(4, ge=1, le=64)
    """Files that each process fetches at a time; no file is fetched by two."""
    tries: int = Field(8, ge=1)
    """Times that a request is made before the run gives up; the pauses between them grow to half a minute."""
    timeout: float = Field(60, gt=0)
    """Seconds without an answer after which a try counts as failed."""

    @property
    def directory(self) -> Path:
        return Path(self.dir).expanduser() if self.dir is not None else user_cache()


def user_cache() -> Path:
    """The folder of this package in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "vlp"


class NoRoom(Exception):
    """Nothing may be evicted for a file that is fetched ahead of its use."""


Reserve = Callable[[int], None]
"""Makes room for so many bytes of the file; called once, before the first is written."""
Fill = Callable[[int, Reserve], None]
"""Writes a file through its descriptor, whole and checked, or raises."""


class Cache:
    """Files by key, evicted least recently used first. Cheap to pickle and to fork: it holds a path and a number.

    Args:
        directory: made where it is missing.
        limit: most bytes of all files, those being fetched included; None for no limit.
    Raises:
        ConfigError: the directory cannot be made.
    """

    def __init__(self, directory: Path, limit: int | None) -> None:
        self.limit = limit
        self._files = directory / "files"
        self._total = directory / "total"
        try:
            self._files.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"data.cache.dir: {directory} cannot be made ({error.strerror}); give a folder on a local disk"
            ) from None

    def open(self, key: str, size: int | None = None) -> int | None:
        """A descriptor of a file, locked for reading until `read_shared` has read from it, or None where there is none.

        Args:
            size: bytes that it must have; another file is removed.
        """
        path = self._files / key
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        state = os.fstat(descriptor)
        if state.st_nlink and (size is None or state.st_size == size):
            os.utime(descriptor)
            return descriptor
        if state.st_nlink:
            path.unlink(missing_ok=True)
        close_shared(descriptor)
        return None

    def obtain(self, key: str, fill: Fill, size: int | None = None) -> int:
        """As `open`, and where there is no such file it is made, by one process while the others wait.

        Raises:
            DataError: the disk is full or cannot be written to, the file is larger than the cache; and what `fill`
                raises.
        """
        with self._on_disk():
            while True:
                descriptor = self.open(key, size)
                if descriptor is None:
                    descriptor = self._make(key, fill, size, wait=True, older_than=None)
                if descriptor is not None:
                    return descriptor

    def load(self, key: str, fill: Fill, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of a small file's bytes; a file that it refuses is made again.

        Raises:
            ValueError: what `parse` raised for the file as it was made last.
            DataError: as `obtain`.
        """
        for made in range(FETCHES):
            descriptor = self.obtain(key, fill)
            try:
                data = read_shared(descriptor, os.fstat(descriptor).st_size, 0)
                if data is None:  # evicted at once
                    continue
                return parse(data)
            except ValueError:
                self.remove(key)
                if made == FETCHES - 1:
                    raise
            finally:
                os.close(descriptor)
        raise DataError(f"{self._files.parent}: files are evicted before they can be read; raise data.cache.bytes")

    def fetch_ahead(self, key: str, fill: Fill, *, size: int | None = None, older_than: float | None = None) -> None:
        """Make a file that will be asked for, unless it is there or another process makes it.

        Args:
            older_than: evict only what was last used before this time, in seconds since the epoch; None for any.
        Raises:
            NoRoom: nothing may be evicted for it.
            DataError: as `obtain`.
        """
        with self._on_disk():
            descriptor = self.open(key, size)
            if descriptor is None:
                descriptor = self._make(key, fill, size, wait=False, older_than=older_than)
            if descriptor is not None:
                close_shared(descriptor)

    def remove(self, key: str) -> None:
        """Forget a file that turned out to be damaged."""
        (self._files / key).unlink(missing_ok=True)

    def _make(self, key: str, fill: Fill, size: int | None, *, wait: bool, older_than: float | None) -> int | None:
        partial = self._files / (key + _PARTIAL)
        descriptor = lock_new(partial, wait)
        if descriptor is None:
            return None
        try:
            found = self.open(key, size)  # made while this process waited for the lock
            if found is None:
                fill(descriptor, lambda room: self._reserve(descriptor, room, wait, older_than))
                os.fsync(descriptor)
                with self._counted():  # a walk through the directory sees a file before it or after it, not both
                    os.rename(partial, self._files / key)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                return descriptor
        except BaseException:
            partial.unlink(missing_ok=True)
            close_shared(descriptor)
            raise
        partial.unlink(missing_ok=True)
        close_shared(descriptor)
        return found

    def _reserve(self, descriptor: int, room: int, wait: bool, older_than: float | None) -> None:
        """Give the file its size, so that it counts, once that much is free."""
        if self.limit is None:
            return
        if room > self.limit:
            raise ConfigError(f"data.cache.bytes: a file of {room:,} bytes does not fit into {self.limit:,}; raise it")
        while not self._fits(descriptor, room, self.limit, older_than):
            if not wait:
                raise NoRoom
            time.sleep(0.02)  # all that is there is being read or fetched at this moment

    def _fits(self, descriptor: int, room: int, limit: int, older_than: float | None) -> bool:
        with self._counted() as total:
            if total[0] + room > limit:
                total[0] = self._evict(room, limit, older_than)
                if total[0] + room > limit:
                    return False
            os.ftruncate(descriptor, room)
            total[0] += room
            return True

    @contextmanager
    def _counted(self) -> Iterator[list[int]]:
        """The bytes of all files, under the lock that guards every change of them.

        Files that were lost on the way (a fetch that failed) still count, until an eviction looks what is there.
        """
        descriptor = os.open(self._total, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.pread(descriptor, 32, 0)
            total = [int(text) if text.isdigit() else sum(size for _, size, _ in self._found())]
            yield total
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(total[0]).encode(), 0)
        finally:
            os.close(descriptor)

    def _evict(self, room: int, limit: int, older_than: float | None) -> int:
        """Remove files until so much room is free, as far as may be; gives the bytes of those that are left."""
        found = self._found()
        total = sum(size for _, size, _ in found)
        goal = limit - max(room, min(_SPARE, limit // 20))
        for used, size, path in sorted(found):
            if total <= goal:
                break
            if (older_than is None or used < older_than or path.endswith(_PARTIAL)) and remove_unused(path):
                total -= size
        return total

    def _found(self) -> list[tuple[float, int, str]]:
        """When each file was used last, its size and its path."""
        found = []
        with os.scandir(self._files) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # renamed since
                    state = entry.stat()
                    found.append((state.st_mtime, state.st_size, entry.path))
        return found

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Errors of the disk as a sentence; those of the storage are sentences already."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{self._files.parent}: the disk is full; free some of it, lower data.cache.bytes, or give "
                    "data.cache.dir a folder on a larger disk"
                ) from None
            place = f" ({error.filename})" if error.filename else ""
            raise DataError(
                f"{self._files.parent}: cannot be used as a cache: {error.strerror or error}{place}; "
                "give data.cache.dir a folder on a local disk"
            ) from None
