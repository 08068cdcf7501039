"""The members of a tar, straight from its headers.

Stricter than `tarfile`, which takes a damaged header in the middle for the end, and bounded in memory: nothing but
headers is read. Knows ustar, pax and GNU long names; refuses links, sparse files and names that point outside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_EXTENDED = 1 << 20
_LONGEST_NAME = 4096
_LONGEST_NUMBER = 20
"""Digits and the blank behind them; the largest file there can be has 19."""
_FILES = (b"0", b"\0", b"7")


class TarFault(ValueError):
    """A file that is not a whole, plain tar; the message says how, without the file's name."""

    def __init__(self, reason: str, position: int = 0, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.position = position
        """Where the header stands that cannot be used."""
        self.refused = refused
        """Whether the header is whole, but tells of what is not taken: a link, a name that points outside, ..."""


class Member(NamedTuple):
    name: str
    offset: int
    """Where the member's bytes start in the tar."""
    size: int


def members(path: Path) -> Iterator[Member]:
    """The regular files of a tar in order.

    Raises:
        TarFault: truncated, damaged, or a member that is a link, sparse, or named outside the tar.
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield from walk(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def walk(descriptor: int, total: int, position: int = 0) -> Iterator[Member]:
    """The regular files of an open tar of `total` bytes, from the header at `position` on.

    Raises:
        TarFault, OSError: as `members`.
    """
    told = 0
    extended: dict[str, str] = {}
    while True:
        header = os.pread(descriptor, _BLOCK, position)
        if len(header) < _BLOCK:
            raise TarFault(f"ends at byte {total} without the tar's end mark: it is truncated", position)
        if header.count(0) == _BLOCK:
            _check_end(descriptor, position)
            return
        size, kind = _size(header, position), header[156:157]
        if kind in _FILES and "size" in extended:
            size = _whole(extended["size"], position)
        start = position + _BLOCK
        if start + size > total:
            reason = f"ends at byte {total}, inside a member that needs {start + size}: it is truncated"
            raise TarFault(reason, position)
        if kind in (b"x", b"L"):
            told = _bounded(told + size, position)
            extended |= _extended(os.pread(descriptor, size, start), kind, position)
        elif kind in _FILES:
            if any(key.startswith("GNU.sparse") for key in extended):
                reason = f"has a sparse file at byte {position}, which cannot be read in place"
                raise TarFault(reason, position, refused=True)
            yield Member(_safe(extended.get("path") or _name(header, position), position), start, size)
            extended, told = {}, 0
        elif kind == b"5":
            extended, told = {}, 0
        elif kind not in (b"g", b"K"):
            name = (extended.get("path") or _name(header, position))[:_LONGEST_NAME]
            reason = f"has a member '{name}' of type {kind!r}: links and devices are refused"
            raise TarFault(reason, position, refused=True)
        position = start + -(-size // _BLOCK) * _BLOCK


def _check_end(descriptor: int, position: int) -> None:
    """Nothing but zeros follows the end mark: a header that was wiped out looks like one, and would hide the rest."""
    place = position
    while block := os.pread(descriptor, _CHUNK, place):
        if block.count(0) != len(block):
            raise TarFault(
                f"goes on behind the end mark at byte {position}: a header was wiped out, or tars were joined", position
            )
        place += len(block)


def _size(header: bytes, position: int) -> int:
    field = header[148:156]
    told = _octal(field, position)
    if told != sum(header) - sum(field) + 8 * 32:
        raise TarFault(f"has a damaged header at byte {position}", position)
    if header[124] & 0x80:  # GNU: sizes of 8 GiB and more, base 256
        if header[124] != 0x80:
            raise TarFault(f"has a damaged header at byte {position}", position)
        return int.from_bytes(header[125:136], "big")
    return _octal(header[124:136], position)


def _octal(field: bytes, position: int) -> int:
    text = field.split(b"\0", 1)[0].strip()
    if not text.isdigit():
        if text:
            raise TarFault(f"has a damaged header at byte {position}", position)
        return 0
    try:
        return int(text, 8)
    except ValueError:
        raise TarFault(f"has a damaged header at byte {position}", position) from None


def _whole(text: str, position: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise TarFault(f"has a damaged header before byte {position}", position)
    return int(text)


def _bounded(size: int, position: int) -> int:
    """The bytes of all extended headers of one member."""
    if size > _MAX_EXTENDED:
        raise TarFault(f"has extended headers of {size} bytes at byte {position}, more than {_MAX_EXTENDED}", position)
    return size


def _extended(data: bytes, kind: bytes, position: int) -> dict[str, str]:
    """What a pax header (`size`, `path`, ...) or a GNU long name says of the member after it."""
    try:
        if kind == b"L":
            return {"path": data.split(b"\0", 1)[0].decode()}
        records = {}
        place = 0
        while place < len(data) and data[place]:
            blank = data.find(b" ", place, place + _LONGEST_NUMBER)
            end = place + _whole(data[place:blank].decode() if blank > 0 else "", position)
            key, equals, value = data[blank + 1 : end].decode().partition("=")
            if not equals or not value.endswith("\n") or end > len(data):
                raise TarFault(f"has a damaged extended header at byte {position}", position)
            records[key] = value[:-1]
            place = end
        return records
    except UnicodeDecodeError:
        raise TarFault(f"has a name that is not UTF-8 at byte {position}", position) from None


def _name(header: bytes, position: int) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise TarFault(f"has a name that is not UTF-8 at byte {position}", position) from None


def _safe(name: str, position: int) -> str:
    if len(name) > _LONGEST_NAME:
        raise TarFault(f"has a member with a name of {len(name)} characters at byte {position}", position, refused=True)
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or any(ord(letter) < 32 for letter in name):
        reason = f"has a member named {name!r}, which points outside the shard or is no plain name"
        raise TarFault(reason, position, refused=True)
    return "/".join(part for part in parts if part != ".")
