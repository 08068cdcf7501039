"""Rows of features as WebDataset samples: `<key>.json` with their texts, and `<key>.<name>.npy`. Rows of one key, as
the texts of a photo are, make one sample."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from vlp.data.arrays import ArrayFault, npy_bytes, read_npy
from vlp.features.rows import Arrays, Layout, Row, columns_of, rows_of, texts_of

_MOST_BYTES = 2 << 30
"""Of a member."""
_BLOCK = 1 << 20
"""Bytes that are copied at once."""


def write(path: Path, rows: Sequence[Row], layout: Layout) -> None:
    used: set[str] = set()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for key, group in groupby(rows, lambda row: row.key):
            own = list(group)
            stem = _unused(member_key(key), used)
            about = {"key": key, **texts_of(own)}
            del about["keys"]
            _add(archive, f"{stem}.json", json.dumps(about, ensure_ascii=False).encode())
            for name, array in columns_of(own, layout).items():
                _add(archive, f"{stem}.{name}.npy", npy_bytes(array))


def _unused(stem: str, used: set[str]) -> str:
    """A stem that no sample of the tar has: rows of one key may stand apart, and keys become alike."""
    number, found = 1, stem
    while found in used:
        number += 1
        found = f"{stem}~{number}"
    used.add(found)
    return found


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def join(parts: Sequence[Path], path: Path) -> None:
    """Write tars as one, byte by byte, with one end instead of several."""
    with path.open("wb") as out:
        for part in parts:
            left = _end(part)
            with part.open("rb") as file:
                while left:
                    left -= out.write(file.read(min(_BLOCK, left)))
        out.write(bytes(2 * tarfile.BLOCKSIZE))
        out.write(bytes(-out.tell() % tarfile.RECORDSIZE))


def _end(path: Path) -> int:
    """Where the last member of a tar ends."""
    end = 0
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return end


def read(path: Path, layout: Layout) -> Iterator[Row]:
    with tarfile.open(path, "r:") as archive:  # no packed one, which may unpack to anything
        stem, texts = "", None
        columns: Arrays = {}
        for member in archive:
            data, (own, name) = _data(archive, member), _parts(member.name)
            if name == "json":
                if texts is not None:
                    yield from rows_of(texts, columns, layout)
                stem, texts, columns = own, _texts(member.name, data), {}
            elif texts is None or own != stem or name.removesuffix(".npy") in columns:
                raise ArrayFault(f"'{member.name}' stands twice, or without a .json before it")
            else:
                columns[name.removesuffix(".npy")] = read_npy(data)
        if texts is not None:
            yield from rows_of(texts, columns, layout)


def _data(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg() or member.issparse() or member.size > _MOST_BYTES:
        raise ArrayFault(f"'{member.name}' is no plain file of at most {_MOST_BYTES} bytes")
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _parts(member: str) -> tuple[str, str]:
    """Stem and extension, as WebDataset cuts them: at the first dot of the last part."""
    folder, slash, last = member.rpartition("/")
    base, _, name = last.partition(".")
    return f"{folder}{slash}{base}", name


def _texts(member: str, data: bytes) -> Mapping[str, Any]:
    try:
        about = json.loads(data)
        return {**about, "keys": [about["key"]] * len(about["ids"])}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArrayFault(f"'{member}' is not what stands beside features") from None


def member_key(key: str) -> str:
    """A key as it may stand in a tar: WebDataset cuts it at the first dot of its last part, and whoever unpacks the tar
    stays in their folder. What would break that is written as in a URL; keys of shards stay what they are."""
    *folders, last = key.split("/")
    safe = [_quoted(part, "" if part.strip(".") else ".") or "%2F" for part in folders]
    return "/".join([*safe, _quoted(last, ".") or "_"])


def _quoted(part: str, more: str) -> str:
    unsafe = {"\\", "\x7f", *more}
    return "".join(
        "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogateescape"))
        if letter < " " or letter in unsafe or "\ud800" <= letter <= "\udfff"
        else letter
        for letter in part
    )
