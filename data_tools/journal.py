"""The journal of an import, in a hidden folder of --out while it runs: what it is, and what is done.

Every finished shard has a note beside it before it has its name; so whatever stands under a final name is known, and an
import that was killed goes on with what is missing. The folder is removed when all is done.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.importing.record import Record
from data_tools.writer import Sealed
from vlp.data.arrays import write_whole
from vlp.data.build import checksum_of
from vlp.errors import DataError

FOLDER = ".import"
_PLAN = "plan.json"
_PATIENCE = 10.0
"""Seconds to wait for the processes of a killed import: they notice within an image."""


@dataclass(frozen=True, slots=True)
class Note:
    """What the journal knows of one piece of work."""

    state: str
    """Of the records and image files that it was made of."""
    made: dict[str, Any]
    """What came of it."""


class Journal:
    """The journal of one `--out`. Any process may note its own pieces of work."""

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER

    def plan(self) -> dict[str, Any] | None:
        """What the unfinished import in this directory is; None if there is none."""
        return _read(self.folder / _PLAN)

    def begin(self, plan: dict[str, Any]) -> None:
        """Start the journal of an import, or take it up again."""
        self._write(_PLAN, plan)

    def clear(self) -> None:
        """Forget an import; the lock stays."""
        (self.folder / _PLAN).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)

    def end(self) -> None:
        """All is done."""
        self.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def note(self, name: str, note: Note) -> None:
        """Say that a piece of work is done; `name` may name a folder."""
        self._write(f"{name}.json", {"state": note.state, "made": note.made})

    def done(self, name: str) -> Note | None:
        """What is known of a piece of work; None if it was not finished."""
        record = _read(self.folder / f"{name}.json")
        try:
            return Note(record["state"], record["made"]) if record is not None else None
        except KeyError:
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from importing into the same directory.

        Raises:
            DataError: another import does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            end = time.monotonic() + _PATIENCE
            while not _lock(file.fileno()):
                if time.monotonic() > end:
                    raise DataError(
                        f"{self.folder.parent}: another import is writing here; wait for it, or choose another --out"
                    )
                time.sleep(0.1)
            try:
                yield
            finally:
                fcntl.flock(file.fileno(), fcntl.LOCK_UN)

    def _write(self, name: str, record: dict[str, Any]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(record).encode())


def refuse_unfinished(directory: Path) -> None:
    """Raises DataError if a directory of shards, or the split import that it is a part of, is not finished."""
    for out in (directory, directory.parent):
        plan = Journal(out).plan()
        if plan is not None and (out == directory or directory.name in plan.get("split", {})):
            raise DataError(
                f"{directory}: holds an unfinished import, so shards are missing; "
                f"finish it with the same `vlp-data {plan.get('command', '')}`, or remove {out / FOLDER}"
            )


def holds(path: Path, sealed: Sealed) -> bool:
    """Whether a finished shard is as it was: same size, and the same time stamp or at least the same bytes."""
    try:
        state = path.stat()
    except OSError:
        return False
    if state.st_size != sealed.bytes:
        return False
    return state.st_mtime_ns == sealed.mtime_ns or checksum_of(path) == sealed.checksum


def state_of(records: Iterable[Record], images: Path | None) -> str:
    """A hash of records, and of the sizes and time stamps of their image files."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        questions = [
            (question.text, question.answers, question.id, dict(question.types)) for question in record.questions
        ]
        said = [record.file, record.captions, questions, dict(record.metadata), _stamp(record, images)]
        digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _stamp(record: Record, images: Path | None) -> tuple[int, int] | None:
    if images is None:
        return None
    try:
        state = (images / record.file).stat()
    except (OSError, ValueError):
        return None
    return state.st_size, state.st_mtime_ns


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # some network file systems have no locks
            raise
    return True
