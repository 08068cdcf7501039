"""Pairs out of a CSV, TSV or JSONL file: a row is a pair, read again by its place in the file.

Columns (or keys): `image` is the photo's path, `text` its text, `regions` an npz; `key` names the pair (else its number
does). A path is relative to the table's folder. Memory is 8 bytes a row, whatever a row holds.
"""

from __future__ import annotations

import csv
import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from vlp.errors import ConfigError, DataError, nearest
from vlp.features.preparing import Files, Item, Preparing, printable
from vlp.features.sources import MAX_KEY, Group, Lengths, Texts, uniform_lengths

COLUMNS = ("image", "text", "regions", "key")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*_DELIMITERS, ".jsonl")
_MAX_LINE = 32 << 20
"""Bytes of a line; the rest of a longer one is passed over."""
_MAX_KEYS = 1000
"""Of a JSONL file that are kept to tell columns by."""


class TableSource:
    """A table of pairs.

    Args:
        columns: what the file calls a column, where it is not ours: `{"text": "title"}`.
        images: the folder that images' paths are relative to (default: the table's).
        regions: a folder of npz files named by key, where the table has no column of them.
    Raises:
        DataError: no file, no row, or no such column.
    """

    kind = "pairs"
    texts: Texts = "captions"

    def __init__(
        self,
        path: Path,
        preparing: Preparing,
        columns: Mapping[str, str] | None = None,
        images: Path | None = None,
        regions: Path | None = None,
    ) -> None:
        self._path, self._preparing = path, preparing
        self._images, self._regions = images or path.parent, regions
        self.place, self.images = str(path), str(self._images)
        self.options: Mapping[str, str] = _options(columns or {}, images, regions)
        self._names = {name: (columns or {}).get(name, name) for name in COLUMNS}
        self._header: list[str] = []
        self._starts = array("Q")
        self.fingerprint = self._scan()
        if not self._starts:
            raise DataError(f"{path}: has no row")
        self.columns = frozenset(self._found_columns())
        """Ours that the table has."""

    @property
    def groups(self) -> list[Group]:
        return [Group("pairs", len(self._starts))]

    def lengths(self, group: int) -> Lengths:
        return uniform_lengths(len(self._starts), self._preparing)

    def items(self, group: int, first: int, last: int) -> Iterator[Item]:
        with self._path.open("rb") as file:
            for number in range(first, last):
                file.seek(self._starts[number])
                yield self._item(number, file)

    def image(self, name: str) -> Files:
        if name not in self._numbers:
            raise DataError(f"{self._path}: has no row with the image '{name}', so it is not what was extracted")
        number = self._numbers[name]
        with self._path.open("rb") as file:
            file.seek(self._starts[number])
            row = self._row(file)
        return Files(self._file(row, "image", self._images), self._regions_of(row, _key(row, number)))

    def photo(self, name: str) -> Path | None:
        return self.image(name).picture  # type: ignore[return-value]  # a table names files

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The first row of each image; made when it is first asked for, since it takes memory."""
        found: dict[str, int] = {}
        with self._path.open("rb") as file:
            for number in range(len(self._starts)):
                file.seek(self._starts[number])
                with suppress(ValueError, csv.Error, RecursionError):
                    row = self._row(file)
                    found.setdefault(printable(self._name(row, _key(row, number))), number)
        return found

    def _name(self, row: Mapping[str, str], key: str) -> str:
        """What the table calls a row's image: its path, that of its regions, or what their file is named by."""
        return row.get("image") or row.get("regions") or (key if self._regions else "")

    def _item(self, number: int, file: BinaryIO) -> Item:
        id = _number(number)
        try:
            row = self._row(file)
            key = _key(row, number)
            if len(key) > MAX_KEY:
                raise ValueError(f"has a key of {len(key)} characters, more than {MAX_KEY}")
            files = Files(self._file(row, "image", self._images), self._regions_of(row, key))
            words, name = row.get("text") or "", self._name(row, key)
        except (ValueError, csv.Error, RecursionError) as error:
            return Item(id, id, "", fault=("row", str(error)))
        return self._preparing.item(key, key, words, files, name)

    def _regions_of(self, row: Mapping[str, str], key: str) -> Path | None:
        found = self._file(row, "regions", self._path.parent)
        return self._regions / f"{key}.npz" if found is None and self._regions else found

    @staticmethod
    def _file(row: Mapping[str, str], name: str, folder: Path) -> Path | None:
        value = row.get(name)
        if value and "\0" in value:
            raise ValueError(f"has a zero byte in '{name}'")
        return folder / value if value else None

    def _row(self, file: BinaryIO) -> dict[str, str]:
        """The next row, by our names; ValueError or csv.Error where it is none."""
        if self._path.suffix == ".jsonl":
            record: Any = json.loads(_line(file))
            if not isinstance(record, dict):
                raise ValueError("is not a JSON object")
            values = record
        else:
            cells = self._cells(file)
            if len(cells) != len(self._header):
                raise ValueError(f"has {len(cells)} cells where the first line names {len(self._header)}")
            values = dict(zip(self._header, cells, strict=True))
        found = {ours: values[theirs] for ours, theirs in self._names.items() if values.get(theirs) is not None}
        for name, value in found.items():
            if name == "key" and isinstance(value, int):
                found[name] = str(value)
            elif not isinstance(value, str):
                raise ValueError(f"has no text under '{self._names[name]}'")
        return found

    def _cells(self, file: BinaryIO) -> list[str]:
        """The cells of the next row; none at the end of the file."""
        before = csv.field_size_limit(_MAX_LINE)  # of the whole process, so it is put back
        try:
            return next(csv.reader(iter(lambda: _line(file), ""), delimiter=_DELIMITERS[self._path.suffix]), [])
        finally:
            csv.field_size_limit(before)

    def _scan(self) -> str:
        """Find the rows; returns the fingerprint of the file's bytes."""
        try:
            with self._path.open("rb") as file:
                fingerprint = _digest(file)
                file.seek(0)
                self._find_rows(file)
        except OSError as error:
            raise DataError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        return fingerprint

    def _find_rows(self, file: BinaryIO) -> None:
        if self._path.suffix != ".jsonl":
            self._header = [name.strip() for name in self._cells(file)]
            self._header[:1] = [self._header[0].removeprefix("\ufeff")] if self._header else []
        while True:
            start = file.tell()
            if self._path.suffix == ".jsonl":
                line = _line(file)
                blank = not line.strip()
                ended = not line
            else:
                ended, blank = self._pass_row(file)
            if ended:
                return
            if not blank:
                self._starts.append(start)

    def _pass_row(self, file: BinaryIO) -> tuple[bool, bool]:
        """Read a row of a CSV; whether the file is at its end, and whether there is nothing in the row."""
        start = file.tell()
        try:
            blank = not any(self._cells(file))
            return file.tell() == start, blank
        except csv.Error:  # too long a cell, perhaps for a quote that never ends: a bad row
            return False, False

    def _found_columns(self) -> list[str]:
        """Ours among the table's.

        Raises:
            ConfigError: one that was named is not there.
            DataError: neither images nor texts are.
        """
        known = self._header if self._path.suffix != ".jsonl" else self._keys()
        for ours, theirs in self._names.items():
            if ours != theirs and theirs not in known:
                raise ConfigError(f"--columns: {self._path} has no column '{theirs}'{nearest(theirs, known)}")
        found = [ours for ours, theirs in self._names.items() if theirs in known]
        if not {"image", "text", "regions"} & set(found):
            raise DataError(
                f"{self._path}: has no column 'image' or 'text'; name its own, as in --columns image=file,text=title"
            )
        return found

    def _keys(self) -> list[str]:
        """The keys of a JSONL file's objects: of so many rows as it takes to find all that are wanted, else of all."""
        found: dict[str, None] = {}
        with self._path.open("rb") as file:
            for start in self._starts:
                file.seek(start)
                with suppress(ValueError, RecursionError):
                    record = json.loads(_line(file))
                    if isinstance(record, dict) and len(found) < _MAX_KEYS:
                        found |= dict.fromkeys(record)
                if found.keys() >= set(self._names.values()):
                    break
        return list(found)


def _options(columns: Mapping[str, str], images: Path | None, regions: Path | None) -> dict[str, str]:
    """As `vlp extract` takes them."""
    given = {
        "columns": ",".join(f"{ours}={theirs}" for ours, theirs in columns.items()),
        "images": str(images or ""),
        "regions": str(regions or ""),
    }
    return {name: value for name, value in given.items() if value}


def _key(row: Mapping[str, str], number: int) -> str:
    return row.get("key") or _number(number)


def _number(row: int) -> str:
    """What a row without a key is called."""
    return f"{row:09d}"


def _digest(file: BinaryIO) -> str:
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _line(file: BinaryIO) -> str:
    """The next line, cut at `_MAX_LINE`; bytes that are no UTF-8 become half surrogates, which no text may have."""
    line = file.readline(_MAX_LINE)
    if len(line) == _MAX_LINE and not line.endswith(b"\n"):
        while (more := file.readline(_MAX_LINE)) and not more.endswith(b"\n"):
            pass
    return line.decode("utf-8", errors="surrogateescape")
