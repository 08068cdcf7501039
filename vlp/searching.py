"""What `vlp index` and `vlp search` do: build an index of extracted vectors, ask it, say what was found."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from vlp.errors import ConfigError, VlpError
from vlp.extraction import Inputs, open_source
from vlp.features.preparing import Files
from vlp.features.reading import Features
from vlp.features.sources import Source
from vlp.search.building import build_index
from vlp.search.facts import Place
from vlp.search.index import Hit, SearchIndex
from vlp.search.searcher import Searcher
from vlp.types import Stream
from vlp.vision_language_model import VisionLanguageModel

Originals = Literal["needed", "wanted", "unused"]
"""Of what was extracted: it is an error if it cannot be opened; it is opened if it can be; it is left alone."""
_WORDS = 200
"""Characters of a text on a line."""


def build(features: Path, out: Path, kind: str) -> None:
    """Build an index and say what it holds and how much of the truth it finds."""
    facts = build_index(Features(features), out, kind)  # type: ignore[arg-type]
    for side, about in facts.sides.items():
        print(
            f"{about.count:,} different {side}s, {kind}: recall@10 {about.recall:.3f} against exact search, "
            f"{about.bytes / (1 << 20):,.1f} MB",
            flush=True,
        )
    if facts.left_out:
        print(f"{facts.left_out:,} rows were left out: their vectors are damaged (not of length 1)")
    print(f"index: {out}")


def search(
    index: Path,
    text: str | None,
    image: Path | None,
    *,
    regions: Path | None,
    model: str | None,
    data: str | None,
    side: str | None,
    k: int,
    rerank: int,
    breadth: float,
    as_json: bool = False,
) -> None:
    """Print what goes with words or with a picture, the best first."""
    if (text is None) == (image is None and regions is None):
        raise ConfigError("--text: give either --text or --image (or --regions, for a model that reads them)")
    wanted = _side(side, "image" if text is not None else "text")
    searcher = open_searcher(index, model, data, "needed" if rerank and text is not None else "unused")
    searcher.index.widen(breadth)
    if text is not None:
        hits = searcher.by_words(text, wanted, k, rerank)
    else:
        hits = searcher.by_picture(Files(image, regions), wanted, k, rerank)
    for place, hit in enumerate(hits, start=1):
        if as_json:
            print(json.dumps({"rank": place, "score": round(hit.score, 6), **told(hit)}, ensure_ascii=False))
        else:
            print(f"{place:3d}  {hit.score:8.4f}  {line(hit, wanted)}")


def told(hit: Hit) -> dict[str, str]:
    """A hit as a record."""
    return {"image": near(hit.path), "id": hit.id, "text": hit.words}


def line(hit: Hit, side: Stream) -> str:
    """A hit on one line: the image and its text, or the text and its image; and an id that says more than they do."""
    own = hit.id if hit.image and not hit.id.startswith(hit.image) else ""
    words, image = " ".join(hit.words.split()), near(hit.path)
    words = words if len(words) <= _WORDS else f"{words[:_WORDS]}..."
    parts = (image, words, own) if side == "image" else (words, image, own)
    return "  ".join(part for part in parts if part)


def near(path: str) -> str:
    """A path as it is called from here."""
    return os.path.relpath(path) if os.path.isabs(path) and Path(path).is_relative_to(Path.cwd()) else path


def open_searcher(index: Path, model: str | None, data: str | None, originals: Originals) -> Searcher:
    """An index with its model and, as far as it can be had, what it was made of.

    Args:
        model: None for the one that the vectors came from, where it lay.
        data: None for the source of the features, where it lay.
        originals: whether that source is opened; it always is where `data` names it.
    """
    opened = SearchIndex(index)
    trained = _model(opened) if model is None else VisionLanguageModel.from_pretrained(model)
    if originals == "unused" and data is None:
        return Searcher(opened, trained)
    return Searcher(opened, trained, _source(opened, trained, data, originals == "needed" or data is not None))


def _model(index: SearchIndex) -> VisionLanguageModel:
    name = index.facts.model.place.found(index.folder)
    try:
        return VisionLanguageModel.from_pretrained(name)
    except VlpError as error:
        raise ConfigError(
            f"--model: {index.folder} was made by the model '{name}', which cannot be opened ({error}); say with "
            "--model where it is now"
        ) from None


def _source(index: SearchIndex, model: VisionLanguageModel, data: str | None, needed: bool) -> Source | None:
    facts, folder = index.facts.source, index.folder
    name = data or facts.place.found(folder)
    inputs = Inputs(name, texts=facts.texts if facts.kind == "shards" else None)
    if facts.kind == "pairs":
        inputs = replace(inputs, columns=facts.columns, images=_beside(facts.images, index, data))
    if facts.kind != "shards":
        inputs = replace(inputs, regions=_beside(facts.regions, index, data))
    try:
        source = open_source(inputs, model)
        return source if needed or source.fingerprint == facts.fingerprint else None
    except VlpError as error:
        if not needed:
            return None
        if data is not None:
            raise
        raise ConfigError(
            f"--data: {folder} was made of '{name}', which cannot be opened ({error}); say with --data where it is now"
        ) from None


def _beside(place: Place | None, index: SearchIndex, data: str | None) -> Path | None:
    """A folder that goes with the data: where it lay; or the one that lies alike where the data are now."""
    if place is None:
        return None
    if data is not None:
        moved = Path(data, os.path.relpath(place.path, index.facts.source.place.path))
        if Path(os.path.normpath(moved)).exists():
            return Path(os.path.normpath(moved))
    return Path(place.found(index.folder))


def _side(given: str | None, usual: Stream) -> Stream:
    if given is None:
        return usual
    side = given.removesuffix("s")
    if side not in get_args(Stream):
        raise ConfigError(f"--for: '{given}' is not right, it should be images or texts")
    return side  # type: ignore[return-value]
