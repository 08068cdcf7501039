"""A search index: the vectors of a folder of features, by side, with the names and texts of what they stand for.

    search.json                kind, model, source, counts, recall
    image.faiss, text.faiss    vectors of images and of texts, each once
    <side>.ids.*               ids of the first examples that they stand in
    <side>.images.*            their images' names; <side>.words.* their texts

Shape suffixes: Q queries, D numbers of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp.errors import ConfigError, DataError
from vlp.search.facts import STRINGS, anew, damaged, head_checksum, read_facts
from vlp.search.strings import Strings
from vlp.search.vectors import load, nearest, widen
from vlp.types import Stream


@dataclass(frozen=True)
class Hit:
    """An image or a text that was found."""

    id: str
    """Of the first example that it stands in."""
    image: str
    """The image, or the one that a text belongs to, as the source names it; empty where a text has none."""
    path: str
    """Where the image's file lies, as far as the index knows; of an image in shards its name, `shard/key`."""
    words: str
    """The text, or the first one of an image."""
    score: float
    """The cosine; after reranking, the log odds of a match."""


class SearchIndex:
    """An index that `vlp index` wrote.

    Raises:
        DataError: it is missing or damaged.
        ConfigError: faiss is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.facts = read_facts(self.folder)
        if (path := damaged(self.folder, self.facts)) is not None:
            raise DataError(f"{path}: is damaged (it has another checksum than at first); {anew(self.folder)}")
        self.sides: list[Stream] = [side for side in ("image", "text") if side in self.facts.sides]
        self._vectors = {side: self._load(side) for side in self.sides}
        self._texts = {(side, name): self._strings(side, name) for side in self.sides for name in STRINGS}
        images = self.facts.source.images
        self._images = Path(images.found(self.folder)) if images else None

    def __len__(self) -> int:
        return sum(side.count for side in self.facts.sides.values())

    def widen(self, factor: float) -> None:
        """See `vectors.widen`."""
        for index in self._vectors.values():
            widen(index, factor)

    def search(self, query_QD: NDArray[np.float32], side: Stream, k: int = 10) -> list[list[Hit]]:
        """What is nearest to each query, the best first.

        Args:
            query_QD: `text.vector` or `image.vector` of the queries, which may be of either side.
            side: what is looked for: images or texts.
        Raises:
            ConfigError: the index holds no such side, or vectors of another width.
        """
        if side not in self.sides:
            raise ConfigError(
                f"{self.folder}: has no {side}s to be found; extract {side}.vector too, of data that has {side}s, and "
                f"build it anew, or look for {self.sides[0]}s"
            )
        if query_QD.shape[1] != self.facts.width:
            raise ConfigError(
                f"{self.folder}: has vectors of {self.facts.width} numbers, and the query {query_QD.shape[1]}"
            )
        scores, numbers = nearest(self._vectors[side], query_QD, min(k, self.facts.sides[side].count))
        return [
            [self._hit(side, number, score) for number, score in zip(*row, strict=True) if number >= 0]
            for row in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]

    def _hit(self, side: Stream, number: int, score: float) -> Hit:
        id, image, words = (self._texts[side, name][number] for name in STRINGS)
        path = str(self._images / image) if self._images is not None and image else image
        return Hit(id, image, path, words, score)

    def _load(self, side: Stream) -> object:
        path, facts = self.folder / f"{side}.faiss", self.facts.sides[side]
        if not path.is_file() or path.stat().st_size != facts.bytes:
            raise DataError(f"{path}: is missing, or not as long as when it was written; {anew(self.folder)}")
        if head_checksum(path, facts.count, self.facts.width) != facts.checksum:
            raise DataError(f"{path}: is damaged (it has another checksum than at first); {anew(self.folder)}")
        index = load(path)
        if (index.d, index.ntotal) != (self.facts.width, facts.count):
            raise DataError(f"{path}: holds other vectors than search.json says; {anew(self.folder)}")
        return index

    def _strings(self, side: Stream, name: str) -> Strings:
        path, count = self.folder / f"{side}.{name}", self.facts.sides[side].count
        try:
            return Strings(path, count)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}.bytes: cannot be read ({error}); {anew(self.folder)}") from None
