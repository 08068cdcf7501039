"""A file of JSON objects, one a line, each there whole or not at all; a run that resumes goes on where it was."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that have a `step`, in order; a line that a killed run left half is passed over."""
    try:
        with path.open("rb") as file:
            yield from filter(None, map(_record, file))
    except FileNotFoundError:
        return


class JsonLines:
    """Appends objects to a file; each has its `step`.

    Args:
        path: of the file; made if it is not there.
        last_step: objects of later steps are removed from what is there, and so is half a line.
        seen: called with each object that stays.
    """

    def __init__(self, path: Path, last_step: int, seen: Callable[[Record], None] = lambda record: None) -> None:
        self.path = path
        self._reopen(last_step, seen)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._size = os.fstat(self._file).st_size

    def _reopen(self, last_step: int, seen: Callable[[Record], None]) -> None:
        if not self.path.exists():
            return
        fresh = self.path.with_name(self.path.name + ".partial")
        with self.path.open("rb") as old, fresh.open("wb") as new:
            for line in old:
                record = _record(line)
                if record is not None and record["step"] <= last_step:
                    new.write(line)
                    seen(record)
            new.flush()
            os.fsync(new.fileno())
        fresh.replace(self.path)

    def append(self, record: Record) -> None:
        """Write one line. JSON has no NaN, so a number that is not finite becomes null.

        Raises:
            OSError: the disk is full, say; what of the line was written is taken back.
        """
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        line = (json.dumps(plain, allow_nan=False) + "\n").encode()
        # One call of the system, no buffer: a process that is killed has written the line or has not.
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self._size += len(line)

    def sync(self) -> None:
        """Make what is written survive a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _record(line: bytes) -> dict[str, Any] | None:
    """What a whole line holds; None for half of one, or for something else."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], (int, float)) else None
    except (ValueError, KeyError, TypeError):
        return None
