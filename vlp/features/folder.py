"""The folder that an extraction writes, and how it comes through a kill at any moment.

<file>.parquet ...       finished files, each renamed to its place when it is whole: a part each, or several in one
.work/request.json       what is being extracted, until all is done
.work/<part>.json        a part's rows, refusals and checksum, written before it takes its place
.work/<part>.tar         a finished part of a file that has several
.work/*.partial          what is being written
manifest.json            written last: model, data, features, shapes, parts
quarantine.jsonl         what was left out, if anything was
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from vlp.config import read_json
from vlp.data.arrays import write_whole
from vlp.data.build import checksum_of
from vlp.errors import ConfigError, DataError
from vlp.features.manifest import MANIFEST, PartEntry, read_manifest

QUARANTINE = "quarantine.jsonl"
_WORK = ".work"
_REQUEST = "request.json"


class FeatureFolder:
    """A folder of features in the making.

    Args:
        suffix: of its files.
        files: the parts of each file, in order; a file of one part is called as the part is.
    """

    def __init__(self, path: Path, suffix: str, files: Mapping[str, Sequence[str]]) -> None:
        self.path, self._suffix, self._files = path, suffix, files
        self._file_of = {part: name for name, parts in files.items() for part in parts}
        self._work = path / _WORK

    def open(self, request: Mapping[str, Any]) -> bool:
        """Begin, or go on with what a run of the same request left; True if all is done already. One rank calls it.

        Of a finished folder the files that are gone, or have another size than was written, are to be made again.

        Raises:
            ConfigError: the folder holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--out: {self.path} is a file; give a folder for the features")
        kept = _json(self.path / MANIFEST)
        before = kept.get("request") if kept else _json(self._work / _REQUEST)
        if before is not None and not isinstance(before, dict):
            raise DataError(f"{self.path}: cannot be used (its 'request' is no JSON object); remove the folder")
        if before is None and (kept or (self.path.exists() and any(self.path.iterdir()) and not self._only_work())):
            raise ConfigError(f"--out: {self.path} is not empty and holds no extraction; take another folder")
        if before is not None and before != request:
            key = next(key for key in (*request, *before) if before.get(key) != request.get(key))
            raise ConfigError(
                f"--out: {self.path} holds features of another request ('{key}' is {_short(before.get(key))} there, "
                f"and {_short(request.get(key))} now); take another folder"
            )
        if kept and self._whole(request):
            shutil.rmtree(self._work, ignore_errors=True)
            return True
        self._work.mkdir(parents=True, exist_ok=True)
        if before is None:
            write_whole(self._work / _REQUEST, _lines(request))
        return False

    def _whole(self, request: Mapping[str, Any]) -> bool:
        """Whether a finished folder has all that was written; otherwise it is one that is not finished, from now on.

        The manifest goes last, so that this is begun anew where it was killed.
        """
        manifest = read_manifest(self.path)
        refused = self._refused()
        told = len(refused) == manifest.quarantined
        lost = {each.file for each in manifest.parts if self._lost(each) or (each.quarantined and not told)}
        if not lost:
            return True
        self._work.mkdir(exist_ok=True)
        write_whole(self._work / _REQUEST, _lines(request))
        lines = iter(refused)
        for each in manifest.parts:
            own = list(islice(lines, each.quarantined))
            if each.file not in lost:
                first, *more = self._files[each.file.removesuffix(self._suffix)]
                self._note(first, each.rows, own, each.checksum)  # of a file of several parts it is known as a whole
                for part in more:
                    self._note(part, 0, [])
        for file in lost:
            (self.path / file).unlink(missing_ok=True)
        (self.path / MANIFEST).unlink()
        return False

    def _lost(self, entry: PartEntry) -> bool:
        path = self.path / entry.file
        return not path.is_file() or path.stat().st_size != entry.bytes

    def _refused(self) -> list[Any]:
        """What `quarantine.jsonl` tells; nothing where it is gone or damaged."""
        try:
            lines = (self.path / QUARANTINE).read_text(encoding="utf-8").split("\n")
            return [json.loads(line) for line in lines if line]
        except (OSError, ValueError, RecursionError):
            return []

    def done(self, part: str) -> bool:
        """Whether a part is finished."""
        there = self._part(part).exists() or self._file(self._file_of[part]).exists()
        return there and self._noted(part) is not None

    def _noted(self, part: str) -> Mapping[str, Any] | None:
        """What was noted of a part; None where that is missing or damaged."""
        with suppress(DataError):
            note = _json(self._work / f"{part}.json") or {}
            if isinstance(note.get("rows"), int) and isinstance(note.get("quarantined"), list):
                return note
        return None

    def _note(self, part: str, rows: int, refused: Sequence[Mapping[str, str]], checksum: str | None = None) -> None:
        note = {"rows": rows, "quarantined": list(refused), "checksum": checksum}
        write_whole(self._work / f"{part}.json", _lines(note))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}{self._suffix}"

    def _part(self, name: str) -> Path:
        return (self.path if self._file_of[name] == name else self._work) / f"{name}{self._suffix}"

    def put(self, part: str, rows: int, refused: Sequence[Mapping[str, str]], write: Callable[[Path], None]) -> None:
        """Write a part: it is there whole or not at all.

        Args:
            write: writes the file at a path.
        """
        partial, path = self._written(part, write), self._part(part)
        self._note(part, rows, refused, checksum_of(partial) if path == self._file(part) else None)
        os.replace(partial, path)

    def _written(self, name: str, write: Callable[[Path], None]) -> Path:
        partial = self._work / f"{name}.partial"
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        return partial

    def join(self, number: int, ranks: int, joined: Callable[[Sequence[Path], Path], None]) -> None:
        """Make the files of several parts, all of which are there: the `number`-th of each `ranks` files.

        Args:
            joined: writes the files at some paths, one after the other, to a path.
        """
        for name, parts in list(self._files.items())[number::ranks]:
            own = [self._part(part) for part in parts]
            note = self._noted(parts[0])
            if note is not None and own != [self._file(name)] and not self._file(name).exists():
                partial = self._written(name, lambda path, own=own: joined(own, path))  # type: ignore[misc]
                self._note(parts[0], note["rows"], note["quarantined"], checksum_of(partial))
                os.replace(partial, self._file(name))
                for path in own:
                    path.unlink()

    def close(self, facts: Mapping[str, Any], request: Mapping[str, Any]) -> tuple[int, int]:
        """Write the manifest when all files are there; returns rows, and examples left out. One rank calls it.

        Raises:
            DataError: a file is missing.
        """
        refused: list[Mapping[str, str]] = []
        files = []
        for name, parts in self._files.items():
            notes = [note for part in parts if (note := self._noted(part)) is not None]
            if not self._file(name).exists() or len(notes) < len(parts):
                raise DataError(f"{self._file(name)}: is missing, though its extraction is done; run it again")
            own = [record for note in notes for record in note["quarantined"]]
            refused += own
            about = {"rows": sum(note["rows"] for note in notes), "quarantined": len(own)}
            told = {"bytes": self._file(name).stat().st_size, "checksum": notes[0].get("checksum")}
            files.append({"file": self._file(name).name, **told, **about})
        rows = sum(file["rows"] for file in files)
        if refused:
            lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in refused)
            self._place(QUARANTINE, lines.encode(errors="backslashreplace"))
        manifest = {"rows": rows, **facts, "quarantined": len(refused), "parts": files, "request": request}
        self._place(MANIFEST, _lines(manifest))
        shutil.rmtree(self._work, ignore_errors=True)
        return rows, len(refused)

    def _place(self, name: str, data: bytes) -> None:
        """Write a file of the finished folder, by way of the work's: what a kill leaves lies there and goes with it."""
        write_whole(self._work / name, data)
        os.replace(self._work / name, self.path / name)

    def totals(self) -> tuple[int, int]:
        """Rows, and examples left out, of a finished folder."""
        manifest = read_manifest(self.path)
        return manifest.rows, manifest.quarantined

    def _only_work(self) -> bool:
        """A start that was killed before it wrote what it was asked for."""
        return {path.name for path in self.path.iterdir()} <= {_WORK}


def _json(path: Path) -> Any:
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be used ({error}); remove the folder") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: cannot be used (it is no JSON object); remove the folder")
    return found


def _lines(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
