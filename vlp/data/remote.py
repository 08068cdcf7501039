"""A data directory in remote storage, used as a local one: its index lies beside its shards, as it was made locally.

Opening reads the manifest alone. Tables and tars are fetched when they are asked for, or ahead of that, into a cache
that all processes of a machine share (`vlp.data.cache`), whole and checked against the manifest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from vlp.data.arrays import MAX_ARRAY_BYTES, ArrayFault
from vlp.data.cache import FETCHES, Cache, CacheConfig, Reserve
from vlp.data.index import Index
from vlp.data.manifest import INDEX, MANIFEST, MOST_BYTES, Manifest, ShardEntry, is_intact, parse_manifest
from vlp.data.prefetch import Prefetcher
from vlp.data.sharedfile import read_shared
from vlp.data.storage import Absent, Storage, remote_url
from vlp.data.tables import ShardTable, parse_table
from vlp.errors import ConfigError, DataError

T = TypeVar("T")

_GRACE = 60.0
"""Seconds for which a file counts as in use beyond what is known of its use."""
_SHARDS_ON, _TABLES_ON = 5, 64
"""How far ahead of a reader that goes from shard to shard."""
_AGAIN = "index the local shards again with `vlp-data index DIR` and upload them with DIR/index"


class RemoteIndex(Index):
    """An index whose tables and shards are fetched into a cache."""

    def __init__(self, storage: Storage, settings: CacheConfig) -> None:
        data, manifest = _manifest(storage)
        super().__init__(storage.url, manifest)
        self.settings = settings
        self.state = hashlib.blake2b(data, digest_size=16).hexdigest()
        """Changes with anything in shards or index."""
        self.side_folders: tuple[str, ...] = ()
        """Folders of `index/` with a file per shard that is wanted along with its table."""
        self._storage = storage
        self._cache = Cache(settings.directory, settings.bytes)
        self._prefetcher = Prefetcher(self._fetch_ahead, settings.downloads)
        self._windows = [time.time()] * 2
        self._planned = False
        self._last = {"table": -1, "now": -1}
        self._next: dict[str, range] = {}

    def open_shard(self, shard: int) -> int:
        self._read_on("now", shard, _SHARDS_ON)
        entry = self.manifest.shards[shard]
        return self._cache.obtain(_shard_key(entry), partial(self._fill_shard, entry), entry.bytes)

    def pread(self, descriptor: int, size: int, offset: int) -> bytes | None:
        return read_shared(descriptor, size, offset)

    def side_file(self, folder: str, shard: int, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of a file in a folder of `index/` that belongs to a shard.

        Args:
            parse: raises ArrayFault for bytes that are not right; they are fetched again.
        Raises:
            Absent: there is none.
            DataError: it cannot be fetched, or is still not right.
        """
        return self._parsed(self._side_name(folder, shard), parse)

    def check_room(self, shards: int) -> None:
        """Raises ConfigError unless so many shards of this dataset can be in the cache at once."""
        needed = sum(sorted((entry.bytes for entry in self.manifest.shards), reverse=True)[:shards])
        if needed > self.settings.bytes:
            raise ConfigError(
                f"data.cache.bytes: {self.settings.bytes:,} are too few, the shards of {self.directory} that are "
                f"shuffled together take up to {needed:,}; raise it, or lower data.block_shards"
            )

    def ahead(self, now: Sequence[int], then: Sequence[int], tables: Sequence[int] = ()) -> None:
        """Fetch in the background, in this order.

        Args:
            now: shards that are read from now on; they may take the place of anything that is not being read.
            then: shards that are read after them; they take the place only of what has not been used for a while.
            tables: shards of which the tables alone are wanted.
        """
        self._planned = True
        # What was used in the window before this one may still be read: by other ranks, or at the edge of a block.
        self._windows = [self._windows[1], time.time()]
        jobs = [("table", shard) for shard in (*now, *tables)] + [("now", shard) for shard in now]
        jobs += [("table", shard) for shard in then] + [("then", shard) for shard in then]
        self._prefetcher.want(jobs)

    def _read_on(self, kind: str, shard: int, count: int) -> None:
        """Fetch what lies after this shard, where shards are read one by one and nobody has said what comes next."""
        follows, self._last[kind] = shard == self._last[kind] + 1, shard
        if self._planned or not follows:
            return
        entries, room = self.manifest.shards, self.settings.bytes // 2
        end = shard + 1
        while end < min(shard + count, len(entries)) and (kind == "table" or room >= entries[end].bytes):
            room -= entries[end].bytes
            end += 1
        self._next[kind] = range(shard, end)
        self._prefetcher.want([(kind, number) for kind in self._last for number in self._next.get(kind, ())])

    def _load(self, shard: int) -> ShardTable:
        self._read_on("table", shard, _TABLES_ON)
        return self._parsed(self._side_name("", shard), partial(self._table, shard))

    def _table(self, shard: int, data: bytes) -> ShardTable:
        wanted = self.manifest.shards[shard]
        table, entry = parse_table(data, wanted.name)
        if entry != wanted:
            raise ArrayFault("does not fit the manifest")
        return table

    def _side_name(self, folder: str, shard: int) -> str:
        return "/".join(filter(None, (INDEX, folder, f"{self.manifest.shards[shard].name.removesuffix('.tar')}.npz")))

    def _parsed(self, name: str, parse: Callable[[bytes], T]) -> T:
        try:
            return self._cache.load(self._key(name), partial(self._fill_small, name), parse)
        except ArrayFault as fault:
            raise DataError(f"{self.directory}/{name}: cannot be used ({fault}); {_AGAIN}") from None

    def _key(self, name: str) -> str:
        return _digest(f"{self.state}/{name}")

    def _fill_small(self, name: str, descriptor: int, reserve: Reserve) -> None:
        data = self._storage.read(name, MAX_ARRAY_BYTES)
        reserve(len(data))
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)

    def _fill_shard(self, entry: ShardEntry, descriptor: int, reserve: Reserve) -> None:
        reserve(entry.bytes)
        for _ in range(FETCHES):
            found = self._storage.download(entry.name, entry.bytes, descriptor)
            if found == entry.checksum:
                return
        raise DataError(
            f"{self.directory}/{entry.name}: its bytes are not those of the index (BLAKE2b {found}, not "
            f"{entry.checksum}), after {FETCHES} downloads: it is damaged or was changed; upload it again, or {_AGAIN}"
        )

    def _fetch_ahead(self, job: tuple[str, int]) -> None:
        """What the prefetcher does; the reader meets an error again, and tells it."""
        kind, shard = job
        entry = self.manifest.shards[shard]
        if kind == "table":
            for folder in ("", *self.side_folders):
                name = self._side_name(folder, shard)
                self._cache.fetch_ahead(self._key(name), partial(self._fill_small, name))
            return
        older_than = None if kind == "now" else self._windows[0] - _GRACE
        self._cache.fetch_ahead(
            _shard_key(entry), partial(self._fill_shard, entry), size=entry.bytes, older_than=older_than
        )


def open_remote(directory: Path | str, cache: CacheConfig) -> RemoteIndex:
    """Open the data directory that a URL names.

    Raises:
        ConfigError: no such kind of storage, a package is missing, or the cache cannot be made.
        DataError: no index there, or one that cannot be read.
    """
    url = remote_url(directory)
    assert url is not None
    return RemoteIndex(Storage(url, tries=cache.tries, timeout=cache.timeout), cache)


def _manifest(storage: Storage) -> tuple[bytes, Manifest]:
    name = f"{INDEX}/{MANIFEST}"
    try:
        storage.find_out(name)
        for _ in range(FETCHES):
            data = storage.read(name, MOST_BYTES)
            manifest = parse_manifest(data, f"{storage.url}/{name}", _AGAIN)
            if is_intact(data, manifest):
                return data, manifest
    except Absent as error:
        raise DataError(
            f"{error}; a remote directory is indexed before it is uploaded: `vlp-data index DIR`, then upload DIR with "
            "DIR/index"
        ) from None
    raise DataError(f"{storage.url}/{name}: is not as it was written, after {FETCHES} downloads; upload it again")


def _shard_key(entry: ShardEntry) -> str:
    """The same for the same shard, wherever it lies. Of the manifest's word nothing becomes a file name."""
    return _digest(f"{entry.checksum}/{entry.bytes}")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
