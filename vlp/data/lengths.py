"""Tokens of every caption and question, counted once per tokenizer and kept beside the index.

The split of a step into micro-batches needs lengths before anything is read. A side file per shard holds them,
under `index/lengths-<fingerprint of the tokenizer>/`, or in the user's cache where the data cannot be written to.
For remote data they are best uploaded with the index; else a shard's texts are counted when its block is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import ArrayFault, npz_bytes, read_npz, write_npz
from vlp.data.cache import Cache, Reserve, user_cache
from vlp.data.index import Index
from vlp.data.manifest import INDEX, ShardEntry
from vlp.data.remote import RemoteIndex
from vlp.data.samples import Fault, SampleTexts
from vlp.data.shards import ShardReader
from vlp.data.storage import Absent
from vlp.errors import DataError

Count = Callable[[list[str]], list[int]]
"""Tokens of each text, specials included, not cut."""

_UNREADABLE = np.iinfo(np.int32).max
"""Length of a text that cannot be read any more: cut at the limit, so any neighbour may replace its example."""


class TokenLengths:
    """Token lengths of all texts of a local index. Holds no tokenizer: cheap to send to loader workers."""

    stored = True
    """All are counted; false where a shard's texts are read for its lengths."""

    def __init__(self, index: Index, folders: tuple[Path, ...], limit: int) -> None:
        self.index = index
        self.limit = limit
        """Most tokens of a text that the model takes, specials included."""
        self._folders = folders

    @property
    def folder(self) -> Path:
        """Where side files are kept, if it can be written to."""
        return self._folders[0]

    def table(self, shard: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Uncut lengths of a shard's captions, and of its questions: flat, in the order of the samples.

        Raises:
            DataError: the side file is missing, damaged, or of another state of the shard.
        """
        entry = self.index.manifest.shards[shard]
        path = _find(self._folders, entry)
        if path is None:
            raise DataError(f"{self._folders[0] / _file(entry)}: token lengths are missing; start the command again")
        try:
            return _parse(entry, path)
        except (ArrayFault, OSError):
            raise DataError(
                f"{path}: token lengths are damaged or of another state of the shard; remove the file"
            ) from None


class RemoteLengths(TokenLengths):
    """Token lengths of a remote index: those that lie beside it, or else counted as blocks are opened.

    Counting reads a shard's texts, for which its tar is fetched; with one group that is a tar that is read anyway. What
    was counted is kept beside the cache of the shards, four bytes per text.
    """

    def __init__(self, index: RemoteIndex, count: Count, fingerprint: str, limit: int) -> None:
        super().__init__(index, (), limit)
        self._remote = index
        self._folder = f"lengths-{fingerprint}"
        self._count = count
        self._reader = ShardReader(index)
        self._counted = Cache(index.settings.directory / "lengths", None)
        self.stored = self._are_stored()
        if self.stored:
            index.side_folders += (self._folder,)

    def table(self, shard: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        entry = self.index.manifest.shards[shard]
        parse = partial(_parse, entry)
        if not entry.captions + entry.questions:
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        if not self.stored:
            # Of the manifest's word nothing becomes a file name.
            key = hashlib.blake2b(f"{self._remote.state}/{self._folder}/{entry.name}".encode(), digest_size=16)
            return self._counted.load(key.hexdigest(), partial(self._fill, shard), parse)
        try:
            return self._remote.side_file(self._folder, shard, parse)
        except Absent as error:
            raise DataError(
                f"{error}: token lengths lie there of other shards; make all with `vlp-data index DIR --tokenizer "
                "TOKENIZER` and upload DIR/index again"
            ) from None

    def _are_stored(self) -> bool:
        """Whether side files were uploaded: the first shard with texts tells, since nothing can be listed."""
        shards = self.index.manifest.shards
        first = next((number for number, entry in enumerate(shards) if entry.captions + entry.questions), None)
        if first is None:
            return True
        try:
            self._remote.side_file(self._folder, first, partial(_parse, shards[first]))
        except Absent:
            return False
        return True

    def _fill(self, shard: int, descriptor: int, reserve: Reserve) -> None:
        data = npz_bytes(_count(self._reader, shard, self._count))
        reserve(len(data))
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)


def token_lengths(index: Index, count: Count, fingerprint: str, limit: int) -> TokenLengths:
    """Open the token lengths of an index, counting those that are missing.

    Side files are renamed into place when whole, so several processes may do this at once.

    Args:
        count: tokens of each text, specials included, not cut.
        fingerprint: of the tokenizer; names the folder, so plain letters, digits, `-` and `_`.
        limit: where `Block.tokens_E` cuts.
    Raises:
        DataError: the shards cannot be read, or neither the data directory nor the cache can be written to.
    """
    if isinstance(index, RemoteIndex):
        return RemoteLengths(index, count, fingerprint, limit)
    folders = (
        Path(index.directory) / INDEX / f"lengths-{fingerprint}",
        user_cache() / "lengths" / index.manifest.fingerprint / fingerprint,
    )
    lengths = TokenLengths(index, folders, limit)
    reader = ShardReader(index)
    for shard, entry in enumerate(index.manifest.shards):
        if _find(folders, entry) is None:
            _write(folders, entry, _count(reader, shard, count))
    reader.close()
    return lengths


def _parse(entry: ShardEntry, source: bytes | Path) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Lengths of a shard's captions and questions, from a side file or its bytes.

    Raises:
        ArrayFault: damaged, or of another state of the shard.
        OSError: the file cannot be read.
    """
    try:
        arrays = read_npz(source)
        captions, questions = arrays["captions"].astype(np.int32), arrays["questions"].astype(np.int32)
        fits = arrays["checksum"].tobytes().decode() == entry.checksum
    except (KeyError, ValueError) as error:
        raise ArrayFault(f"damaged: {error}") from None
    if not fits or captions.shape != (entry.captions,) or questions.shape != (entry.questions,):
        raise ArrayFault("of another state of the shard")
    return captions, questions


def _file(entry: ShardEntry) -> str:
    return f"{entry.name.removesuffix('.tar')}.npz"


def _find(folders: tuple[Path, ...], entry: ShardEntry) -> Path | None:
    return next((folder / _file(entry) for folder in folders if (folder / _file(entry)).is_file()), None)


def _count(reader: ShardReader, shard: int, count: Count) -> dict[str, NDArray[Any]]:
    table = reader.index.table(shard)
    captions: list[str | None] = []
    questions: list[str | None] = []
    for row in range(len(table)):
        wanted = int(table.captions_S[row]), int(table.questions_S[row])
        try:
            texts = reader.texts(shard, row)
        except Fault:
            texts = SampleTexts()
        if (len(texts.captions), len(texts.questions)) == wanted:
            captions += texts.captions
            questions += [question.text for question in texts.questions]
        else:
            captions += [None] * wanted[0]
            questions += [None] * wanted[1]
    entry = reader.index.manifest.shards[shard]
    return {
        "captions": _counted(captions, count),
        "questions": _counted(questions, count),
        "checksum": np.frombuffer(entry.checksum.encode(), np.uint8),
    }


def _counted(texts: list[str | None], count: Count) -> NDArray[np.int32]:
    lengths = np.full(len(texts), _UNREADABLE, np.int32)
    readable = [number for number, text in enumerate(texts) if text is not None]
    if readable:
        lengths[readable] = count([text for text in texts if text is not None])
    return lengths


def _write(folders: tuple[Path, ...], entry: ShardEntry, arrays: dict[str, NDArray[Any]]) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_npz(folder / _file(entry), arrays)
            return
        except OSError:
            continue
    raise DataError(
        f"{folders[0]}: token lengths can be written neither here nor in {folders[-1]}; make one of them writable"
    )
