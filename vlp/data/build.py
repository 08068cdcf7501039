"""Making the index: every tar is read once, its members' places, counts and sizes written beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vlp.data import tar
from vlp.data.arrays import write_whole
from vlp.data.manifest import INDEX, MANIFEST, Manifest, ShardEntry, fingerprint, manifest_bytes, read_manifest, sealed
from vlp.data.scan import scan_shard
from vlp.data.tables import ShardTable, load_table, make_entry, save_table
from vlp.errors import DataError


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


Each = Callable[[Callable[[str], "Indexed"], Sequence[str]], Iterable["Indexed"]]
"""What came of each shard, in order: of the work on one, and of the names of all."""


def build_index(
    directory: Path,
    *,
    text_only: bool = False,
    made_by: Mapping[str, Any] | None = None,
    each: Each = map,
) -> Manifest:
    """Make or renew the index of a data directory; shards that did not change are not read again.

    Args:
        text_only: samples may have neither an image nor regions; else such samples are counted and left out.
        made_by: notes for the manifest; without, those of the manifest before are kept.
        each: goes through the shards: `map`, or the like of it in processes.
    Raises:
        DataError: no shards, a damaged or truncated one, a sample that breaks the schema, mixed widths, or no sample
            with an image or regions.
    """
    names = shard_names(directory)
    (directory / INDEX).mkdir(exist_ok=True)
    results = list(each(partial(index_shard, directory, text_only), names))
    notes = dict(made_by) if made_by is not None else _notes(directory)
    manifest = make_manifest(directory, results, text_only=text_only, notes=notes)
    if manifest.left_out and not manifest.samples:
        raise DataError(
            f"{directory}: none of its {manifest.left_out} samples has an image or regions; "
            "if the dataset is text only, say `--text-only`"
        )
    _remove_orphans(directory, names)
    write_whole(directory / INDEX / MANIFEST, manifest_bytes(manifest))
    return manifest


def make_manifest(directory: Path, results: Sequence[Indexed], *, text_only: bool, notes: dict[str, Any]) -> Manifest:
    """The manifest of shards, from what `index_shard` gave for each.

    Raises:
        DataError: mixed widths.
    """
    entries = tuple(entry for entry, _ in results)
    made = Manifest(
        shards=entries,
        text_only=text_only,
        left_out=sum(sizes.left_out for _, sizes in results),
        feature_width=_common(entries, [sizes.feature_width for _, sizes in results], "region features", directory),
        class_count=_common(entries, [sizes.class_count for _, sizes in results], "class probabilities", directory),
        class_ids=_ids([sizes.class_ids for _, sizes in results], notes, "classes"),
        attribute_ids=_ids([sizes.attribute_ids for _, sizes in results], notes, "attributes"),
        fingerprint=fingerprint(entries, text_only),
        made_by=notes,
    )
    return sealed(made)


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


def _ids(found: list[int], notes: Mapping[str, Any], name: str) -> int | None:
    """How many classes the numbers are of: as declared, since one dataset need not show them all."""
    regions = notes.get("regions")
    declared = regions.get(name) if isinstance(regions, dict) else None
    largest = max(found, default=0)
    return max(largest, declared if isinstance(declared, int) else 0) if largest else None


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


class Sizes(NamedTuple):
    """What a shard's regions have in common, 0 where it has none; and how many of its samples are left out."""

    feature_width: int
    class_count: int
    class_ids: int
    attribute_ids: int
    left_out: int

    @classmethod
    def of(cls, table: ShardTable) -> Sizes:
        return cls(table.feature_width, table.class_count, table.class_ids, table.attribute_ids, table.left_out)


Indexed = tuple[ShardEntry, Sizes]
"""What the manifest says of a shard, and what it is to be asked about its regions."""


def index_shard(directory: Path, text_only: bool, name: str, checksum: str | None = None) -> Indexed:
    """Index one shard, unless its index file is still good; gives its entry and the sizes of its regions.

    Args:
        checksum: of the tar, where its maker knows it.
    Raises:
        DataError: as `build_index`.
    """
    path, target = directory / name, directory / INDEX / f"{name.removesuffix('.tar')}.npz"
    try:
        before = path.stat()
        table, entry = _known(path, target, before, text_only) or (None, None)
        if table is None or entry is None:
            checksum = checksum_of(path)
            table = scan_shard(path, text_only=text_only)
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
    return entry, Sizes.of(table)


def _known(path: Path, target: Path, now: os.stat_result, text_only: bool) -> tuple[ShardTable, ShardEntry] | None:
    """The index file of a shard if it still holds: same size, the same time stamp or at least the same bytes, and the
    same samples left out."""
    if not target.is_file():
        return None
    try:
        table, entry = load_table(target)
    except DataError:
        return None
    bare = bool((~table.has_image_S & (table.regions_S == 0)).any())
    if entry.bytes != now.st_size or (table.left_out if text_only else bare):
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
