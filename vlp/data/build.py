"""Making the index: every tar is read once, its members' places, counts and sizes written beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlp.data import tar
from vlp.data.arrays import write_whole
from vlp.data.manifest import INDEX, MANIFEST, Manifest, ShardEntry, fingerprint, read_manifest
from vlp.data.scan import scan_shard
from vlp.data.tables import ShardTable, load_table, make_entry, save_table
from vlp.errors import DataError

Progress = Callable[[int, int], None]
"""Called with the number of shards done and their total."""


def shard_names(directory: Path) -> list[str]:
    """The shards of a directory, sorted by name.

    Raises:
        DataError: no such directory, or no shard in it.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory; give the directory that holds the *.tar shards")
    files = [name for name in os.listdir(directory) if not name.startswith(".")]
    names = sorted(name for name in files if name.endswith(".tar"))
    if not names:
        packed = any(name.endswith((".tar.gz", ".tgz", ".tar.zst")) for name in files)
        hint = (
            "unpack the compressed ones, members are read in place" if packed else "make some with `vlp-data coco`, ..."
        )
        raise DataError(f"{directory}: holds no *.tar shard; {hint}")
    return names


def build_index(
    directory: Path,
    *,
    workers: int = 1,
    text_only: bool = False,
    progress: Progress | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> Manifest:
    """Make or renew the index of a data directory; shards that did not change are not read again.

    Args:
        workers: processes that read shards.
        text_only: samples may have neither an image nor regions.
        made_by: notes for the manifest; without, those of the manifest before are kept.
    Raises:
        DataError: no shards, a damaged or truncated one, a sample that breaks the schema, mixed widths.
    """
    names = shard_names(directory)
    (directory / INDEX).mkdir(exist_ok=True)
    results = []
    for result in _each(partial(_index_shard, directory, text_only), names, workers):
        results.append(result)
        if progress is not None:
            progress(len(results), len(names))
    entries = tuple(entry for entry, _, _ in results)
    manifest = Manifest(
        shards=entries,
        text_only=text_only,
        feature_width=_common(entries, [width for _, width, _ in results], "region features", directory),
        class_count=_common(entries, [classes for _, _, classes in results], "class probabilities", directory),
        fingerprint=fingerprint(entries, text_only),
        made_by=dict(made_by) if made_by is not None else _notes(directory),
    )
    _remove_orphans(directory, names)
    text = manifest.model_dump_json(indent=1)
    write_whole(directory / INDEX / MANIFEST, text.encode() + b"\n")
    return manifest


def _each(work: Callable[[str], Any], names: list[str], workers: int) -> Iterator[Any]:
    if workers <= 1 or len(names) == 1:
        yield from map(work, names)
        return
    with ProcessPoolExecutor(min(workers, len(names))) as pool:
        try:
            yield from pool.map(work, names)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _common(entries: tuple[ShardEntry, ...], widths: list[int], what: str, directory: Path) -> int | None:
    first: tuple[int, str] | None = None
    for entry, width in zip(entries, widths, strict=True):
        if width and first is None:
            first = width, entry.name
        if width and first is not None and width != first[0]:
            raise DataError(
                f"{directory}: {what} are {first[0]} wide in {first[1]} but {width} wide in {entry.name}; "
                "one directory holds one width, keep the others apart"
            )
    return first[0] if first else None


def _notes(directory: Path) -> dict[str, Any]:
    try:
        return read_manifest(directory).made_by
    except (DataError, OSError):
        return {}


def _remove_orphans(directory: Path, names: list[str]) -> None:
    known = {f"{Path(name).stem}.npz" for name in names}
    for path in (directory / INDEX).glob("*.npz"):
        if path.name not in known:
            path.unlink()


def _index_shard(directory: Path, text_only: bool, name: str) -> tuple[ShardEntry, int, int]:
    """Index one shard, unless its index file is still good; gives its entry, feature width and class count."""
    path, target = directory / name, directory / INDEX / f"{name.removesuffix('.tar')}.npz"
    try:
        before = path.stat()
        table, entry = _known(path, target, before) or (None, None)
        if table is None or entry is None:
            checksum = checksum_of(path)
            table = scan_shard(path)
            entry = make_entry(table, name, before.st_size, checksum)
            for stale in (directory / INDEX).glob(f"lengths-*/{target.name}"):
                stale.unlink(missing_ok=True)
            save_table(target, table, entry)
            # The index file takes its shard's time stamp: equal stamps mean that the shard was not touched since.
            os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    except tar.TarFault as fault:
        raise DataError(f"{path}: the shard {fault}; make or fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be indexed: {error.strerror or error}") from None
    if not text_only:
        bare = np.flatnonzero(~table.has_image_S & (table.regions_S == 0))
        if len(bare):
            raise DataError(
                f"{path}: sample '{table.keys[bare[0]]}' has neither an image nor regions "
                f"({len(bare)} of {len(table)} samples); if the dataset is text only, say `--text-only`"
            )
    return entry, table.feature_width, table.class_count


def _known(path: Path, target: Path, now: os.stat_result) -> tuple[ShardTable, ShardEntry] | None:
    """The index file of a shard if it still holds: same size, and the same time stamp or at least the same bytes."""
    if not target.is_file():
        return None
    try:
        table, entry = load_table(target)
    except DataError:
        return None
    if entry.bytes != now.st_size:
        return None
    if target.stat().st_mtime_ns != now.st_mtime_ns:
        if checksum_of(path) != entry.checksum:
            return None
        os.utime(target, ns=(now.st_atime_ns, now.st_mtime_ns))
    return table, entry


def checksum_of(path: Path) -> str:
    """BLAKE2b of a file, 16 bytes in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()
