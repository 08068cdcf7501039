"""What `vlp index` and `vlp search` do: build an index of extracted vectors, ask it, say what was found."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from vlp.errors import ConfigError, VlpError
from vlp.extraction import Inputs, open_source
from vlp.features.preparing import Files
from vlp.features.reading import Features
from vlp.features.sources import Source
from vlp.search.index import SearchIndex, build_index
from vlp.search.searcher import Searcher
from vlp.types import Stream
from vlp.vision_language_model import VisionLanguageModel


def build(features: Path, out: Path, kind: str) -> None:
    """Build an index and say what it holds and how much of the truth it finds."""
    facts = build_index(Features(features), out, kind)  # type: ignore[arg-type]
    for side, about in facts["sides"].items():
        size = about["bytes"] / (1 << 20)
        print(
            f"{about['count']:,} {side}s, {kind}: recall@10 {about['recall@10']:.3f} against exact search, "
            f"{size:,.1f} MB",
            flush=True,
        )
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
) -> None:
    """Print what goes with words or with a picture, the best first."""
    if (text is None) == (image is None and regions is None):
        raise ConfigError("search: give either --text or --image (or --regions, for a model that reads them)")
    wanted = _side(side, "image" if text is not None else "text")
    searcher = open_searcher(index, model, data, needs_source=rerank > 0 and text is not None)
    searcher.index.widen(breadth)
    if text is not None:
        hits = searcher.by_words(text, wanted, k, rerank)
    else:
        hits = searcher.by_picture(Files(image, regions), wanted, k, rerank)
    for place, hit in enumerate(hits, start=1):
        print(f"{place:3d}  {hit.score:8.4f}  {hit.name}{'  ' + hit.words if hit.words else ''}")


def open_searcher(index: Path, model: str | None, data: str | None, *, needs_source: bool) -> Searcher:
    """An index with its model and, as far as it can be had, what it was made of.

    Args:
        model: None for the one that the vectors came from, where it lay.
        data: None for the source of the features, where it lay.
        needs_source: whether it is an error if it cannot be opened.
    """
    opened = SearchIndex(index)
    trained = VisionLanguageModel.from_pretrained(model or opened.facts["model"]["name"])
    return Searcher(opened, trained, _source(opened, trained, data, needs_source or data is not None))


def _source(index: SearchIndex, model: VisionLanguageModel, data: str | None, needed: bool) -> Source | None:
    texts = index.facts["texts"] if index.facts["source_kind"] == "shards" else None
    try:
        return open_source(Inputs(data or index.facts["source"], texts=texts), model)
    except VlpError:
        if needed:
            raise
        return None


def _side(given: str | None, usual: Stream) -> Stream:
    if given is None:
        return usual
    side = given.removesuffix("s")
    if side not in get_args(Stream):
        raise ConfigError(f"--for: '{given}' is not right, it should be images or texts")
    return side  # type: ignore[return-value]
