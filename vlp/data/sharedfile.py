"""Files that processes share: who makes one holds its lock alone, who reads one holds it with others (`flock`).

A lock belongs to an opening of a file and ends with it, so that of a process that dies is free. It is given back before
the file is closed all the same: a process forked meanwhile has the same opening.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

_FRESH_SECONDS = 1.0
"""Time stamps (they order the eviction) are renewed no more often than this."""


def read_shared(descriptor: int, size: int, offset: int) -> bytes | None:
    """Bytes of a file of a cache; None where it was evicted since it was opened."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        state = os.fstat(descriptor)
        if not state.st_nlink:
            return None
        if time.time() - state.st_mtime > _FRESH_SECONDS:
            os.utime(descriptor)
        return os.pread(descriptor, size, offset)
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def close_shared(descriptor: int) -> None:
    """Unlock a file of a cache and close it: a process forked meanwhile may hold the lock's file open too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def lock_new(path: Path, wait: bool) -> int | None:
    """The file to fetch into, empty and locked; None where another has the lock and `wait` is false."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _stands_at(descriptor, path):
            os.ftruncate(descriptor, 0)  # what a process that died had of it
            return descriptor
        os.close(descriptor)


def remove_unused(path: str) -> bool:
    """Remove a file unless it is in use, or has another name by now; gives whether it was removed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stands = _stands_at(descriptor, path)
        if stands:
            os.unlink(path)
            os.ftruncate(descriptor, 0)  # the disk has its room back even where a process keeps the file open
        return stands
    except BlockingIOError:
        return False
    finally:
        close_shared(descriptor)


def _stands_at(descriptor: int, path: str | Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
