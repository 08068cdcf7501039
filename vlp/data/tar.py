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
_MAX_EXTENDED = 1 << 20
_FILES = (b"0", b"\0", b"7")


class TarFault(ValueError):
    """A file that is not a whole, plain tar; the message says how, without the file's name."""


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
        yield from _walk(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _walk(descriptor: int, total: int) -> Iterator[Member]:
    position = 0
    extended: dict[str, str] = {}
    while True:
        header = os.pread(descriptor, _BLOCK, position)
        if len(header) < _BLOCK:
            raise TarFault(f"ends at byte {total} without the tar's end mark: it is truncated")
        if header.count(0) == _BLOCK:
            return
        size, kind = _size(header, position), header[156:157]
        if kind in _FILES and "size" in extended:
            size = _whole(extended["size"], position)
        start = position + _BLOCK
        if start + size > total:
            raise TarFault(f"ends at byte {total}, inside a member that needs {start + size}: it is truncated")
        if kind in (b"x", b"L"):
            extended |= _extended(os.pread(descriptor, _bounded(size, position), start), kind, position)
        elif kind in _FILES:
            if any(key.startswith("GNU.sparse") for key in extended):
                raise TarFault(f"has a sparse file at byte {position}, which cannot be read in place")
            yield Member(_safe(extended.get("path") or _name(header, position)), start, size)
            extended = {}
        elif kind in (b"5", b"g", b"K"):
            extended = {} if kind == b"5" else extended
        else:
            name = extended.get("path") or _name(header, position)
            raise TarFault(f"has a member '{name}' of type {kind!r}: links and devices are refused")
        position = start + -(-size // _BLOCK) * _BLOCK


def _size(header: bytes, position: int) -> int:
    field = header[148:156]
    told = _octal(field, position)
    if told != sum(header) - sum(field) + 8 * 32:
        raise TarFault(f"has a damaged header at byte {position}")
    if header[124] & 0x80:  # GNU: sizes of 8 GiB and more, base 256
        if header[124] != 0x80:
            raise TarFault(f"has a damaged header at byte {position}")
        return int.from_bytes(header[125:136], "big")
    return _octal(header[124:136], position)


def _octal(field: bytes, position: int) -> int:
    text = field.split(b"\0", 1)[0].strip()
    if not text.isdigit():
        if text:
            raise TarFault(f"has a damaged header at byte {position}")
        return 0
    try:
        return int(text, 8)
    except ValueError:
        raise TarFault(f"has a damaged header at byte {position}") from None


def _whole(text: str, position: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise TarFault(f"has a damaged header before byte {position}")
    return int(text)


def _bounded(size: int, position: int) -> int:
    if size > _MAX_EXTENDED:
        raise TarFault(f"has an extended header of {size} bytes at byte {position}, more than {_MAX_EXTENDED}")
    return size


def _extended(data: bytes, kind: bytes, position: int) -> dict[str, str]:
    """What a pax header (`size`, `path`, ...) or a GNU long name says of the member after it."""
    try:
        if kind == b"L":
            return {"path": data.split(b"\0", 1)[0].decode()}
        records = {}
        while data and data[0]:
            length_text, _, _ = data.partition(b" ")
            length = _whole(length_text.decode(), position)
            key, equals, value = data[len(length_text) + 1 : length].decode().partition("=")
            if not equals or not value.endswith("\n") or length > len(data):
                raise TarFault(f"has a damaged extended header at byte {position}")
            records[key] = value[:-1]
            data = data[length:]
        return records
    except UnicodeDecodeError:
        raise TarFault(f"has a name that is not UTF-8 at byte {position}") from None


def _name(header: bytes, position: int) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise TarFault(f"has a name that is not UTF-8 at byte {position}") from None


def _safe(name: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or any(ord(letter) < 32 for letter in name):
        raise TarFault(f"has a member named {name!r}, which points outside the shard or is no plain name")
    return "/".join(part for part in parts if part != ".")
