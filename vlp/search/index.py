"""A search index: the vectors of a folder of features, by side, with the names and texts of what they stand for.

    search.json                   kind, model, source, counts, recall
    image.faiss, text.faiss       vectors of images and of texts
    image.names.*, text.names.*   their ids; text.words.* the texts

Shape suffixes: Q queries, D numbers of a vector.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import write_whole
from vlp.errors import ConfigError, DataError
from vlp.features.reading import Features
from vlp.search.strings import Strings, StringsWriter
from vlp.search.vectors import KINDS, Kind, build, load, nearest, recall, save, widen
from vlp.types import Stream

FACTS = "search.json"
_CHUNK = 8192
_QUERIES = 500
"""That recall is measured with."""


@dataclass(frozen=True)
class Hit:
    """Something that was found."""

    name: str
    """Of an image, the id of its sample; of a text, the id of its example."""
    words: str
    """Of a text; empty for an image."""
    score: float
    """The cosine; after reranking, the log odds of a match."""


class SearchIndex:
    """An index that `build_index` wrote.

    Raises:
        DataError: it is missing or damaged.
        ConfigError: faiss is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        path = self.folder / FACTS
        try:
            self.facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.sides: list[Stream] = list(self.facts["sides"])
            self._names = {side: Strings(self.folder / f"{side}.names") for side in self.sides}
            self._words = Strings(self.folder / "text.words") if "text" in self.sides else None
        except FileNotFoundError as error:
            raise DataError(
                f"{error.filename}: is missing; build an index with `vlp index --features DIR --out {self.folder}`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: is no search index ({error})") from None
        self._vectors = {side: load(self.folder / f"{side}.faiss") for side in self.sides}

    def __len__(self) -> int:
        return sum(len(names) for names in self._names.values())

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
                f"{self.folder}: has no {side}s to be found; extract {side}.vector too, and build it anew"
            )
        if query_QD.shape[1] != self.facts["width"]:
            raise ConfigError(
                f"{self.folder}: has vectors of {self.facts['width']} numbers, and the query {query_QD.shape[1]}"
            )
        scores, numbers = nearest(self._vectors[side], query_QD, min(k, len(self._names[side])))
        return [
            [self._hit(side, number, score) for number, score in zip(*row, strict=True) if number >= 0]
            for row in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]

    def _hit(self, side: Stream, number: int, score: float) -> Hit:
        words = self._words[number] if side == "text" and self._words is not None else ""
        return Hit(self._names[side][number], words, score)


def build_index(features: Features, out: Path, kind: Kind = "exact") -> dict[str, Any]:
    """Write the index of the vectors in a folder of features; returns what it says of them (`search.json`).

    Texts of one photo give one image. Recall is measured with vectors of the other side, as they will be asked.

    Raises:
        ConfigError: the kind is not known, there are no vectors, or `out` holds something else.
    """
    if kind not in KINDS:
        raise ConfigError(f"--kind: '{kind}' is not known, it should be one of {', '.join(KINDS)}")
    sides: list[Stream] = [side for side in ("image", "text") if f"{side}.vector" in features.names]
    if not sides:
        raise ConfigError(
            f"{features.folder}: has no vectors to search in; extract image.vector or text.vector (or both)"
        )
    if "text" in sides:
        _check_texts_differ(features)
    if out.exists() and any(out.iterdir()) and not (out / FACTS).exists():
        raise ConfigError(f"--out: {out} is not empty and holds no index; take another folder")
    making = out.with_name(f".{out.name}.partial")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    width = int(features.manifest["widths"][f"{sides[0]}.vector"])
    about = {side: _side(features, making, side, kind, width) for side in sides}
    facts = {
        "kind": kind,
        "width": width,
        "model": {"name": features.manifest["model"]["name"], "fingerprint": features.manifest["request"]["model"]},
        "source": features.manifest["source"],
        "source_kind": features.manifest["source_kind"],
        "data": features.manifest["data"],
        "texts": features.manifest["texts"],
        "sides": about,
    }
    write_whole(making / FACTS, (json.dumps(facts, indent=1) + "\n").encode())
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)
    return facts


def _check_texts_differ(features: Features) -> None:
    """Refuse vectors that are one for all texts: a model whose blocks look at no text by itself made them."""
    entries = _entries(features, "text")
    _, words, first_D = next(entries, ("", "", np.zeros(0)))
    others = [False, False]
    for _, text, vector_D in entries:
        others = [others[0] or text != words, others[1] or not np.allclose(vector_D, first_D, atol=1e-5)]
        if others[1]:
            return
    if others[0]:
        raise DataError(
            f"{features.folder}: text.vector is the same for every text, so the model tells none from another; train "
            "one with task.contrast.text=mean or with blocks of the text alone"
        )


def _side(features: Features, folder: Path, side: Stream, kind: Kind, width: int) -> Mapping[str, Any]:
    """Write one side; returns its count, its recall and its size on the disk."""
    names, words = StringsWriter(folder / f"{side}.names"), StringsWriter(folder / f"{side}.words")
    count = 0
    for name, text, _ in _entries(features, side):
        names.add(name)
        words.add(text if side == "text" else "")
        count += 1
    names.close()
    words.close()
    if not count:
        raise DataError(f"{features.folder}: holds no row, so there is nothing to search in")

    def chunks() -> Iterator[NDArray[np.float32]]:
        return _chunks(vector for _, _, vector in _entries(features, side))

    index = build(kind, width, count, chunks)
    path = folder / f"{side}.faiss"
    save(index, path)
    return {
        "count": count,
        "recall@10": round(recall(index, chunks, _queries(features, side)), 4),
        "bytes": path.stat().st_size,
    }


def _entries(features: Features, side: Stream) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
    """Name, text and vector of each image (once, for several texts of it) or of each text."""
    before = None
    several = side == "image" and features.manifest["source_kind"] == "shards" and features.manifest["texts"] != "none"
    for row in features:
        name = row.id.rpartition("#")[0] if several else row.id
        if side == "text" or name != before:
            yield name, row.words, np.asarray(row.arrays[f"{side}.vector"], np.float32)
        before = name


def _queries(features: Features, side: Stream) -> NDArray[np.float32]:
    """Some vectors of the other side, or of this one where there is no other, evenly over all rows."""
    other: Stream = "text" if side == "image" else "image"
    asked = other if f"{other}.vector" in features.names else side
    step = max(1, len(features) // _QUERIES)
    rows = (np.asarray(row.arrays[f"{asked}.vector"], np.float32) for n, row in enumerate(features) if n % step == 0)
    return np.stack(list(rows))


def _chunks(vectors: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    part: list[NDArray[np.float32]] = []
    for vector in vectors:
        part.append(vector)
        if len(part) == _CHUNK:
            yield np.stack(part)
            part = []
    if part:
        yield np.stack(part)
