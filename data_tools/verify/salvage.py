"""What is left of a damaged tar: its members behind the damage too, and those that only the index still knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vlp.data import tar
from vlp.data.scan import key_and_extension
from vlp.data.tables import ShardTable

_BLOCK = 512
_CHUNK = 1 << 20
_MAGIC, _MAGIC_AT = b"ustar", 257
_MOST_FAULTS = 1000
"""A file with more is no tar; looking on would find chance bytes."""


def salvage(path: Path, fault: Callable[[tar.TarFault], None]) -> Iterator[tar.Member]:
    """The members of a tar, beginning anew at the next sound header wherever one cannot be used.

    Args:
        fault: told of each header that cannot be used, in between the members.
    Raises:
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        total = os.fstat(descriptor).st_size
        position: int | None = 0
        for _ in range(_MOST_FAULTS):
            if position is None:
                return
            try:
                yield from tar.walk(descriptor, total, position)
                return
            except tar.TarFault as found:
                fault(found)
                position = _next_header(descriptor, found.position + _BLOCK)
    finally:
        os.close(descriptor)


def _next_header(descriptor: int, position: int) -> int | None:
    """The first block from `position` on that says it is a header; whether it is sound, the walk will see."""
    while chunk := os.pread(descriptor, _CHUNK + _BLOCK, position):
        place = chunk.find(_MAGIC)
        while 0 <= place < _CHUNK + _MAGIC_AT:
            if place % _BLOCK == _MAGIC_AT:
                return position + place - _MAGIC_AT
            place = chunk.find(_MAGIC, place + 1)
        position += _CHUNK
    return None


def from_index(members: list[tar.Member], table: ShardTable, total: int) -> list[tar.Member] | None:
    """Members whose headers are damaged, from the shard's index; None if the index is of another state of the tar.

    Args:
        members: those that were found.
        total: bytes of the tar.
    """
    found = {key_and_extension(member.name): (member.offset, member.size) for member in members}
    known = {
        (key, extension): (int(offset_S[row]), int(size_S[row]))
        for extension, (offset_S, size_S) in table.members.items()
        for row, key in enumerate(table.keys)
        if size_S[row] >= 0
    }
    shared = found.keys() & known.keys()
    if 2 * len(shared) < len(found) or any(found[name] != known[name] for name in shared):
        return None
    return [
        tar.Member(f"{key}.{extension}", offset, size)
        for (key, extension), (offset, size) in known.items()
        if (key, extension) not in found and offset + size <= total
    ]
