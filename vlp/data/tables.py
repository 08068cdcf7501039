"""Where everything lies: the table of one shard, and the tables of a block of shards.

Shape suffixes: S samples of a shard or block, E examples of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import ArrayFault, npz_bytes, read_npz, write_whole
from vlp.data.manifest import VERSION, ShardEntry, Texts
from vlp.data.samples import EXTENSIONS
from vlp.errors import DataError

if TYPE_CHECKING:
    from vlp.data.index import Index
    from vlp.data.lengths import TokenLengths

_COUNTS = ("captions", "questions", "regions", "width", "height")


@dataclass(frozen=True, slots=True)
class ShardTable:
    """The samples of one shard, in the order of the tar."""

    keys: tuple[str, ...]
    members: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]
    """Extension -> offset in the tar and size in bytes, each [S]; size -1 where the sample has no such member."""
    captions_S: NDArray[np.int32]
    questions_S: NDArray[np.int32]
    regions_S: NDArray[np.int32]
    """0 where there are none."""
    has_image_S: NDArray[np.bool_]
    width_S: NDArray[np.int32]
    """Pixels of the image, by its header; 0 if unknown."""
    height_S: NDArray[np.int32]
    feature_width: int = 0
    """0 where no sample has regions."""
    class_count: int = 0
    class_ids: int = 0
    """The largest number in `classes` plus 1; 0 where no sample has them."""
    attribute_ids: int = 0
    left_out: int = 0
    """Samples of the tar that have no row, since they have neither an image nor regions."""

    def __len__(self) -> int:
        return len(self.keys)


def save_table(path: Path, table: ShardTable, entry: ShardEntry) -> None:
    """Write a shard's index file."""
    write_whole(path, table_bytes(table, entry))


def table_bytes(table: ShardTable, entry: ShardEntry) -> bytes:
    """What stands in a shard's index file: the same bytes for the same shard."""
    arrays: dict[str, NDArray[Any]] = {
        "version": np.array(VERSION, np.int64),
        "checksum": np.frombuffer(entry.checksum.encode(), np.uint8),
        "sizes": np.array([entry.bytes, table.feature_width, table.class_count], np.int64),
        "keys": np.frombuffer("\n".join(table.keys).encode(), np.uint8),
        "has_image": table.has_image_S,
    }
    if table.class_ids or table.attribute_ids:
        arrays["ids"] = np.array([table.class_ids, table.attribute_ids], np.int64)
    if table.left_out:
        arrays["left_out"] = np.array([table.left_out], np.int64)
    arrays |= {name: getattr(table, f"{name}_S") for name in _COUNTS}
    for extension, (offset_S, size_S) in table.members.items():
        arrays[f"offset/{extension}"] = offset_S
        arrays[f"size/{extension}"] = size_S
    return npz_bytes(arrays)


def load_table(path: Path) -> tuple[ShardTable, ShardEntry]:
    """A shard's index file, checked against itself; the entry is the manifest's line for it.

    Raises:
        DataError: missing, damaged, or of another version.
    """
    try:
        return parse_table(path, f"{path.stem}.tar")
    except (ArrayFault, OSError) as error:
        raise DataError(
            f"{path}: the shard's index cannot be used ({error}); "
            f"make it again with `vlp-data index {path.parent.parent}`"
        ) from None


def parse_table(source: bytes | Path, name: str) -> tuple[ShardTable, ShardEntry]:
    """What `load_table` gives, from a file or its bytes; `name` is the shard's.

    Raises:
        ArrayFault: damaged, or of another version.
        OSError: the file cannot be read.
    """
    try:
        table, entry = _table(read_npz(source), name)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise error if isinstance(error, ArrayFault) else ArrayFault(f"damaged: {error}") from None
    if not _consistent(table, entry):
        raise ArrayFault("contradicts itself")
    return table, entry


def _table(arrays: dict[str, NDArray[Any]], name: str) -> tuple[ShardTable, ShardEntry]:
    if int(arrays["version"]) != VERSION:
        raise ArrayFault("of another version")
    joined = arrays["keys"].tobytes().decode()
    size, feature_width, class_count = (int(value) for value in arrays["sizes"])
    class_ids, attribute_ids = (int(value) for value in arrays.get("ids", (0, 0)))
    counts = {f"{key}_S": arrays[key].astype(np.int32) for key in _COUNTS}
    table = ShardTable(
        keys=tuple(joined.split("\n")) if joined else (),
        members={
            extension: (arrays[f"offset/{extension}"].astype(np.int64), arrays[f"size/{extension}"].astype(np.int64))
            for extension in EXTENSIONS
            if f"offset/{extension}" in arrays
        },
        has_image_S=arrays["has_image"].astype(np.bool_),
        feature_width=feature_width,
        class_count=class_count,
        class_ids=class_ids,
        attribute_ids=attribute_ids,
        left_out=int(arrays.get("left_out", (0,))[0]),
        **counts,
    )
    return table, make_entry(table, name, size, arrays["checksum"].tobytes().decode())


def make_entry(table: ShardTable, name: str, size: int, checksum: str) -> ShardEntry:
    """The manifest's line for a shard."""
    captions, questions = int(table.captions_S.sum()), int(table.questions_S.sum())
    return ShardEntry(name, size, len(table), captions, questions, checksum)


def _consistent(table: ShardTable, entry: ShardEntry) -> bool:
    counts = [table.captions_S, table.questions_S, table.regions_S, table.width_S, table.height_S]
    columns = [*counts, table.has_image_S, *(column for pair in table.members.values() for column in pair)]
    return (
        all(column.shape == (len(table),) for column in columns)
        and all(bool((column >= 0).all()) for column in counts)
        and min(table.feature_width, table.class_count, table.class_ids, table.attribute_ids, table.left_out) >= 0
        and all(
            bool(((size_S == -1) | ((size_S >= 0) & (offset_S >= 0) & (offset_S <= entry.bytes - size_S))).all())
            for offset_S, size_S in table.members.values()
        )
    )


@dataclass(slots=True)
class Block:
    """The tables of some shards, in the order given: all that the order and the balance need to know."""

    shard_S: NDArray[np.int32]
    """Number of the shard in the manifest."""
    row_S: NDArray[np.int32]
    """Row of the sample in its shard's table."""
    regions_S: NDArray[np.int32]
    has_image_S: NDArray[np.bool_]
    sample_E: NDArray[np.int32]
    """Row of the sample tables that an example belongs to."""
    text_E: NDArray[np.int32]
    """Number of the example's text in its sample, as `Texts` counts them."""
    tokens_E: NDArray[np.int32]
    """Tokens of the text, specials included, cut at the limit."""


def open_block(index: Index, shards: Sequence[int], texts: Texts, lengths: TokenLengths) -> Block:
    """The block of some shards (numbers in the manifest).

    Raises:
        DataError: an index file or a side file of token lengths cannot be used.
    """
    tables = [index.table(shard) for shard in shards]
    samples = [len(table) for table in tables]
    total_S = [_texts(table, texts) for table in tables]
    sample_E = np.repeat(np.arange(sum(samples), dtype=np.int32), _joined(total_S, np.int64))
    tokens_E = [_tokens(table, texts, lengths.table(shard)) for shard, table in zip(shards, tables, strict=True)]
    return Block(
        shard_S=np.repeat(np.array(shards, dtype=np.int32), samples),
        row_S=_joined([np.arange(count) for count in samples], np.int32),
        regions_S=_joined([table.regions_S for table in tables], np.int32),
        has_image_S=_joined([table.has_image_S for table in tables], np.bool_),
        sample_E=sample_E,
        text_E=_joined([_within(counts_S) for counts_S in total_S], np.int32),
        tokens_E=np.minimum(_joined(tokens_E, np.int32), np.int32(lengths.limit)),
    )


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)


def _texts(table: ShardTable, texts: Texts) -> NDArray[np.int64]:
    counts_S = np.zeros(len(table), np.int64)
    if texts != "questions":
        counts_S += table.captions_S
    if texts != "captions":
        counts_S += table.questions_S
    return counts_S


def _within(counts_S: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, .. inside each run of `counts_S`."""
    starts_S = np.cumsum(counts_S) - counts_S
    return np.arange(counts_S.sum()) - np.repeat(starts_S, counts_S)


def _tokens(table: ShardTable, texts: Texts, flat: tuple[NDArray[np.int32], NDArray[np.int32]]) -> NDArray[np.int32]:
    captions_tokens, questions_tokens = flat
    if texts == "captions":
        return captions_tokens
    if texts == "questions":
        return questions_tokens
    # A stable sort by sample puts each sample's captions before its questions.
    rows = np.arange(len(table))
    owner = np.concatenate([np.repeat(rows, table.captions_S), np.repeat(rows, table.questions_S)])
    both = np.concatenate([captions_tokens, questions_tokens])
    return both[np.argsort(owner, kind="stable")].astype(np.int32)
