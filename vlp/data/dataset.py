"""A dataset as the loader uses it: its index, its reader, which of its texts make examples, and their lengths."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.index import Block, Index, Texts, examples_per_shard, open_block
from vlp.data.lengths import TokenLengths
from vlp.data.remote import RemoteIndex
from vlp.data.shards import ShardReader
from vlp.types import Sample


class Dataset:
    """One data directory, read by (shard, row).

    Args:
        texts: which texts of a sample make examples.
        text_only: take its texts alone, as if its samples had no images.
    """

    def __init__(self, index: Index, texts: Texts, lengths: TokenLengths, *, text_only: bool = False) -> None:
        self.index = index
        self.text_only = text_only
        self.remote = index if isinstance(index, RemoteIndex) else None
        self.texts: Texts = texts
        self.lengths = lengths
        self._uncut = copy.copy(lengths)
        self._uncut.limit = int(np.iinfo(np.int32).max)
        self._reader = ShardReader(index)

    @property
    def examples_S(self) -> NDArray[np.int64]:
        """Examples of each shard, for `Order`."""
        return examples_per_shard(self.index.manifest, self.texts)

    @property
    def directory(self) -> str:
        """Where the data lie, as messages name it."""
        return str(self.index.directory)

    def keep(self, shards: int) -> None:
        """Keep the tables of at least so many shards open."""
        self.index.keep(shards)

    def shard_name(self, shard: int) -> str:
        return self.index.manifest.shards[shard].name

    def open_block(self, shards: Sequence[int]) -> tuple[Block, NDArray[np.bool_]]:
        """The block of some shards, and which of its examples have a text that is longer than the limit, [E]."""
        block = open_block(self.index, shards, self.texts, self._uncut)
        limit = self.lengths.limit
        cut_E = block.tokens_E > limit
        block = replace(block, tokens_E=np.minimum(block.tokens_E, np.int32(limit)))
        if self.text_only:
            has_image_S, regions_S = np.zeros_like(block.has_image_S), np.zeros_like(block.regions_S)
            block = replace(block, has_image_S=has_image_S, regions_S=regions_S)
        return block, cut_E

    def read(self, shard: int, row: int, *, image: bool, regions: bool, texts: bool) -> Sample:
        """One sample.

        Raises:
            BadSample: a member cannot be read.
        """
        seen = not self.text_only
        return self._reader.read(shard, row, image=image and seen, regions=regions and seen, texts=texts)

    def read_features(self, shard: int, row: int, first: int, count: int) -> NDArray[np.floating[Any]]:
        """Features of some neighbouring regions of a sample, [count, D].

        Raises:
            BadSample: they cannot be read.
        """
        return self._reader.features(shard, row, first, count)
