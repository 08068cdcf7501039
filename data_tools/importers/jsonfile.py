"""JSON files of datasets: told apart in one sentence, and read in pieces where they are larger than memory likes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from vlp.errors import DataError

_CHUNK = 1 << 20
_MAX_VALUE = 256 << 20
"""Characters of one value that is read in pieces. A whole image of Visual Genome needs a few thousand."""
_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_UNFINISHED = ("", *"0123456789.eE+-")
"""After a value: a number may go on behind what was read."""

Hook = Callable[[dict[str, Any]], Any]


def load_lists(path: Path, names: tuple[str, ...], wanted: str, hook: Hook | None = None) -> tuple[list[Any], ...]:
    """Some lists of a JSON object, by their keys, and nothing else of it.

    Args:
        wanted: what the user should have given, for the error: "VQA's questions file".
        hook: called with every object inside; what it returns stands in the object's place.
    Raises:
        DataError: not JSON, or without one of the lists.
    """
    content = load(path, wanted, hook)
    found = tuple(content.get(name) if isinstance(content, dict) else None for name in names)
    missing = [name for name, value in zip(names, found, strict=True) if not isinstance(value, list)]
    if missing:
        raise DataError(f"{path}: has no list '{missing[0]}'; give {wanted}")
    return tuple(value for value in found if isinstance(value, list))


def load(path: Path, wanted: str, hook: Hook | None = None) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_hook=hook)
    except (ValueError, RecursionError):
        raise _not_json(path, wanted) from None


def elements(path: Path, wanted: str) -> Iterator[Any]:
    """The elements of a file that is one list, one after the other: memory for the largest, not for the file.

    Raises:
        DataError: not JSON, or no list.
    """
    for _, value in _streamed(path, "[", wanted):
        yield value


def entries(path: Path, wanted: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of a file that is one object, likewise.

    Raises:
        DataError: not JSON, or no object.
    """
    yield from _streamed(path, "{", wanted)


def text(value: Any, key: str) -> str | None:
    """The text that stands under a key; None where there is none, or one that holds half a surrogate pair."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) and encodable(found) else None


def encodable(text: str) -> bool:
    """False for a text with half a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def name(value: Any, key: str) -> int | str | None:
    """The id that stands under a key: a number or a text that is not blank."""
    found = value.get(key) if isinstance(value, dict) else None
    if isinstance(found, bool) or not isinstance(found, (int, str)) or found == "":
        return None
    return found


def _streamed(path: Path, bracket: str, wanted: str) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            window = _Window(file)
            if window.letter() != bracket:
                kind = "list" if bracket == "[" else "object"
                raise DataError(f"{path}: is not one JSON {kind}; give {wanted}")
            yield from window.members(bracket)
    except (ValueError, RecursionError):
        raise _not_json(path, wanted) from None


def _not_json(path: Path, wanted: str) -> DataError:
    return DataError(f"{path}: is not valid JSON; give {wanted}")


class _Window:
    """The part of a file that is being read."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.text = ""
        self.place = 0

    def members(self, bracket: str) -> Iterator[tuple[str, Any]]:
        end = "]" if bracket == "[" else "}"
        self.place += 1
        if self.letter() == end:
            return
        while True:
            key = ""
            if bracket == "{":
                key = self.value()
                self.take(":")
                if not isinstance(key, str):
                    raise ValueError("a key that is no text")
            yield key, self.value()
            if self.letter() == end:
                return
            self.take(",")

    def letter(self) -> str:
        """The next letter that is no blank; nothing at the end."""
        while True:
            blanks = _BLANKS.match(self.text, self.place)
            self.place = blanks.end() if blanks else self.place
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def take(self, letter: str) -> None:
        if self.letter() != letter:
            raise ValueError(f"no {letter}")
        self.place += 1

    def value(self) -> Any:
        self.letter()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.place)
            except ValueError:
                # Wrong, or not all of it is here; what is too large to be right is wrong.
                if len(self.text) - self.place > _MAX_VALUE or not self.more():
                    raise
                continue
            if self.text[end : end + 1] not in _UNFINISHED or not self.more():
                self.place = end
                return value

    def more(self) -> bool:
        """Forget what was read, and read as much again as is left: a large value is tried a few times, not often."""
        left = self.text[self.place :]
        chunk = self.file.read(max(_CHUNK, len(left)))
        self.text, self.place = left + chunk, 0
        return bool(chunk)
