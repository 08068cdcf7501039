"""Words or a picture in, images or texts out: a model, an index, and the originals for a second look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from vlp.data.given import count_of
from vlp.data.pictures import Picture
from vlp.data.shards import BadSample
from vlp.errors import ConfigError, DataError
from vlp.features.extractor import Extractor
from vlp.features.job import fingerprint
from vlp.features.kinds import parse_what
from vlp.features.preparing import Files, Item, Preparing
from vlp.features.sources import Source
from vlp.search.index import Hit, SearchIndex
from vlp.tasks.abilities import matcher_of
from vlp.types import Sample, Stream

if TYPE_CHECKING:
    from vlp.vision_language_model import VisionLanguageModel


class Searcher:
    """Searches an index with the model that its vectors came from.

    Args:
        source: what was extracted, for a second look at the best; None goes without.
    Raises:
        ConfigError: the vectors are another model's.
    """

    def __init__(self, index: SearchIndex, model: VisionLanguageModel, source: Source | None = None) -> None:
        if index.facts.model.fingerprint != fingerprint(model):
            raise ConfigError(
                f"--model: the vectors of {index.folder} are those of another model "
                f"('{index.facts.model.place.path}'), and vectors of two models do not compare"
            )
        if source is not None and source.fingerprint != index.facts.source.fingerprint:
            raise ConfigError(f"--data: {source.place} is not what {index.folder} was made of, or has changed since")
        self.index, self.source = index, source
        self._preparing, self.model = Preparing(model), model
        self._extractors: dict[Stream, Extractor] = {}

    def by_words(self, words: str, side: Stream = "image", k: int = 10, rerank: int = 0) -> list[Hit]:
        """What goes with a text.

        Args:
            side: what is looked for.
            k: how many are given at most.
            rerank: so many of the nearest are ranked anew by the head for matching, which looks at each together with
                the text; the best k of these are given. 0 leaves them as they are.
        Raises:
            ConfigError: the text is empty, or there is nothing to rerank with.
        """
        if not isinstance(words, str) or not words.strip():
            raise ConfigError("--text: is empty; give some words")
        item = self._item("text", words, Files())
        return self._found(item, "text", words, None, side, k, rerank)

    def by_picture(self, image: Files | Picture, side: Stream = "text", k: int = 10, rerank: int = 0) -> list[Hit]:
        """What goes with a picture; likewise.

        Args:
            image: a picture or its path; `Files` for a model that reads regions.
        Raises:
            DataError: the picture cannot be used.
        """
        image = image if isinstance(image, Files) else Files(image)
        if image.picture is None and image.regions is None:
            raise ConfigError("--image: is not given; give a picture, its path, or regions")
        return self._found(self._item("image", "", image), "image", "", image, side, k, rerank)

    def _found(
        self, item: Item, asked: Stream, words: str, image: Files | None, side: Stream, k: int, rerank: int
    ) -> list[Hit]:
        assert item.example is not None
        if side not in get_args(Stream):
            raise ConfigError(f"--for: {side!r} is not right, it should be image or text")
        k, rerank = count_of("--k", k), count_of("--rerank", rerank, 0)
        if asked not in self._extractors:
            self._extractors[asked] = Extractor(self.model, parse_what(f"{asked}.vector"))
        (arrays,) = self._extractors[asked].run([item.example])
        query_1D: NDArray[np.float32] = arrays[f"{asked}.vector"][None]
        (hits,) = self.index.search(query_1D, side, rerank or k)
        if self.source is not None and self.source.images:
            hits = [replace(hit, path=str(Path(self.source.images) / hit.image)) if hit.image else hit for hit in hits]
        if not rerank:
            return hits
        if asked == side:
            raise ConfigError(f"--rerank: the second look compares a text with an image, not two {side}s; leave it out")
        odds = self._odds(hits, words, image)
        ranked = sorted((replace(hit, score=score) for hit, score in odds), key=lambda hit: -hit.score)
        return ranked[:k]

    def _odds(self, hits: Sequence[Hit], words: str, image: Files | None) -> list[tuple[Hit, float]]:
        """Log odds of a match of the query with each hit; those that cannot be read any more are left out."""
        if matcher_of(self.model.trained_task) is None:
            raise ConfigError("--rerank: the model has no head for matching; leave it out")
        if image is None and self.source is None:
            raise ConfigError("--rerank: needs the images that the index was made of; give --data")
        found, reason = [], ""
        for hit in hits:
            try:
                shown = image if image is not None else self._original(hit.image)
                found.append((hit, self._item(hit.id, hit.words if image is not None else words, shown)))
            except (DataError, BadSample, OSError) as error:
                reason = reason or str(error)
        if hits and not found:
            raise DataError(
                f"--rerank: none of the {len(hits)} nearest can be looked at again (of the first: {reason})"
            )
        examples = [item.example for _, item in found if item.example is not None]
        rows = Extractor(self.model, parse_what("itm")).run(examples)
        return [(hit, float(row["itm"])) for (hit, _), row in zip(found, rows, strict=True)]

    def _original(self, name: str) -> Sample | Files:
        assert self.source is not None
        return self.source.image(name)

    def _item(self, name: str, words: str, image: Sample | Files) -> Item:
        item = self._preparing.item(name, name, words, image)
        if item.fault is not None:
            given = image.picture if isinstance(image, Files) and isinstance(image.picture, (str, Path)) else name
            member, reason = item.fault
            if not reason.startswith(str(given)):  # which names the file by itself
                reason = f"{given}: {reason if member == given else f'{member} {reason}'}"
            raise DataError(reason)
        return item
