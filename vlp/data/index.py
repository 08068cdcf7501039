"""The index of a data directory: what lies where in its tar shards, known before anything is decoded.

`index/manifest.json` has a line per shard; `index/<shard>.npz` has a shard's table and is read when a block opens, so
that memory is O(shards + open blocks), never O(examples).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from vlp.data.build import build_index
from vlp.data.cache import CacheConfig
from vlp.data.manifest import INDEX, Manifest, ShardEntry, Texts, examples_per_shard, read_manifest
from vlp.data.storage import local_path, remote_url
from vlp.data.tables import Block, ShardTable, load_table, open_block
from vlp.errors import ConfigError, DataError

__all__ = [
    "Block",
    "Index",
    "Manifest",
    "ShardEntry",
    "ShardTable",
    "Texts",
    "build_index",
    "examples_per_shard",
    "open_block",
    "open_index",
]

_TABLES = 16
"""Tables kept open unless more are asked for: those of a block or two. One of 10,000 samples takes about 2 MB."""


class Index:
    """A data directory, indexed. Cheap to pickle and to fork: tables are read where they are asked for."""

    def __init__(self, directory: Path | str, manifest: Manifest) -> None:
        self.directory = directory
        """A local directory, or the URL of a remote one (`vlp.data.remote`)."""
        self.manifest = manifest
        self._tables: OrderedDict[int, ShardTable] = OrderedDict()
        self._kept = _TABLES

    def keep(self, tables: int) -> None:
        """Keep at least so many tables open: a loader with many groups reads from many shards in turn."""
        self._kept = max(self._kept, tables)

    def path(self, shard: int) -> Path:
        """The tar of a shard of a local directory."""
        return Path(self.directory) / self.manifest.shards[shard].name

    def open_shard(self, shard: int) -> int:
        """A descriptor of a shard's tar, for `pread`.

        Raises:
            OSError: it cannot be opened.
            DataError: it cannot be fetched.
        """
        return os.open(self.path(shard), os.O_RDONLY)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes | None:
        """Bytes of an open shard; None where it must be opened again, since a cache gave it up meanwhile."""
        return os.pread(descriptor, size, offset)

    def table(self, shard: int) -> ShardTable:
        """The table of a shard (its number in the manifest); the last few are kept.

        Raises:
            DataError: the shard's index file is missing, damaged, or of another state than the manifest.
        """
        table = self._tables.get(shard)
        if table is None:
            table = self._tables[shard] = self._load(shard)
            if len(self._tables) > self._kept:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(shard)
        return table

    def _load(self, shard: int) -> ShardTable:
        wanted = self.manifest.shards[shard]
        path = Path(self.directory) / INDEX / f"{wanted.name.removesuffix('.tar')}.npz"
        table, entry = load_table(path)
        if entry != wanted:
            raise DataError(
                f"{path}: does not fit the manifest beside it; "
                f"make the index again with `vlp-data index {self.directory}`"
            )
        return table

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": OrderedDict()}


def open_index(directory: Path | str, cache: CacheConfig | None = None) -> Index:
    """Open a data directory that `vlp-data index` has indexed.

    Args:
        directory: a local one, or the URL of a remote one.
        cache: where a remote one is kept; None for the defaults.
    Raises:
        ConfigError: no such directory.
        DataError: no shards, no index, or shards that changed since it was made.
    """
    directory = local_path(directory)
    if remote_url(directory):
        from vlp.data.remote import open_remote

        return open_remote(directory, cache or CacheConfig())
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory; give the directory that holds the *.tar shards")
    with os.scandir(directory) as entries:
        sizes = {e.name: e.stat().st_size for e in entries if e.name.endswith(".tar") and not e.name.startswith(".")}
    if not sizes:
        raise DataError(f"{directory}: holds no *.tar shard; make some with `vlp-data coco`, ...")
    try:
        manifest = read_manifest(directory)
    except FileNotFoundError:
        raise DataError(f"{directory}: has shards but no index; make it with `vlp-data index {directory}`") from None
    again = f"make the index again with `vlp-data index {directory}`"
    for entry in manifest.shards:
        size = sizes.pop(entry.name, None)
        if size is None:
            raise DataError(f"{directory / entry.name}: the index names this shard, but it is not there; {again}")
        if size != entry.bytes:
            changed = f"has {size} bytes where the index says {entry.bytes}: it changed since"
            raise DataError(f"{directory / entry.name}: {changed}; {again}")
    if sizes:
        raise DataError(f"{directory / min(sizes)}: the shard is not in the index; {again}")
    return Index(directory, manifest)
