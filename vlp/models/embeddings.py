"""Embeddings as lists of parts: the vectors that are summed or averaged into a token. Here: what both streams have,
and the text's parts; the image's are in `imageparts.py`.

A part is one kind of vector (`word`, `position`, `segment`, `feature`, `box`, ...), each with its own norm if wanted.
Families differ in which parts they list: a new family is a new list, a new kind of part is one class.

Shape suffixes: N text tokens; B examples; R regions; H width of the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Config
from vlp.models.dropout import dropped
from vlp.types import Packing, TextBatch


class TableConfig(Config):
    """What all look-up tables have."""

    padding_row: bool = False
    """Whether row 0 gets no gradient from the look-up, as code does that takes it for padding; it keeps its start."""


class WordConfig(TableConfig):
    """The word table; its width is the stream's, its rows the vocabulary."""

    kind: Literal["word"]


class PositionConfig(TableConfig):
    """A learned vector per place in the text."""

    kind: Literal["position"]
    first: int = Field(0, ge=0)
    """The row of the first token (Liu et al. 2019, arXiv 1907.11692, has 2 rows before it)."""
    rows: int | None = Field(None, gt=0)
    """Rows from that one on; null for as many as a text may be long."""


class SegmentConfig(TableConfig):
    """A learned vector that tells one text from the next, or this stream from others: a row of a segment table."""

    kind: Literal["segment"]
    rows: int = Field(2, gt=0)
    """Rows of the table."""
    index: int = Field(0, ge=0)
    """The row that this stream takes; a second text takes the one after it."""
    table: Literal["own", "text"] = "own"
    """`text` takes the row from the text stream's segment table instead of a table of its own."""
    start: Literal["random", "text"] = "random"
    """How a table of its own starts: at random, or as a copy of the text's."""

    @model_validator(mode="after")
    def _row_exists(self) -> Self:
        if self.table == "own" and self.index >= self.rows:
            raise ValueError(f"index {self.index} needs a table of more than {self.rows} rows")
        if self.table == "text" and self.start == "text":
            raise ValueError("start is how a table of its own starts, and table is text; remove one of them")
        return self


class NormedConfig(Config):
    """A part that may have a LayerNorm of its own."""

    norm: bool = False
    """LayerNorm over the vector."""
    init_gain: float = 1.0
    """What the norm's gains start at; 0 keeps the part silent at first."""


class WholeImageConfig(NormedConfig):
    """The feature vector of the image's first region, which is the whole image, on every word (Su et al. 2020, arXiv
    1908.08530). A learned vector where an example has no image."""

    kind: Literal["whole_image"]


TextPart = Annotated[
    WordConfig | PositionConfig | SegmentConfig | WholeImageConfig,
    Field(discriminator="kind"),
]


class EmbeddingConfig(Config):
    """How the parts of one stream become its tokens."""

    combine: Literal["sum", "mean"] = "sum"
    """Sum of the parts, or their mean."""


@dataclass(frozen=True)
class TextTables:
    """What the image stream may share with the text's."""

    words: nn.Embedding
    positions: nn.Embedding | None
    segments: nn.Embedding | None
    norm: nn.Module
    first_position: int
    """The row of `positions` for a text's first token."""


class Vectors(nn.Module):
    """A part with learned vectors that are in no table: it says how they start."""

    def start(self, std: float) -> None:
        """Give the vectors their first values."""
        raise NotImplementedError


def table(rows: int, width: int, config: TableConfig) -> nn.Embedding:
    """A look-up table of so many rows."""
    return nn.Embedding(rows, width, padding_idx=0 if config.padding_row else None)


class Word(nn.Module):
    def __init__(self, config: WordConfig, vocab_size: int, width: int) -> None:
        super().__init__()
        self.table = table(vocab_size, width, config)

    def forward(self, text: TextBatch) -> Tensor:
        return self.table(text.ids_N)  # type: ignore[no-any-return]


class Position(nn.Module):
    def __init__(self, config: PositionConfig, places: int, width: int) -> None:
        super().__init__()
        self.first = config.first
        self.table = table(config.first + (config.rows or places), width, config)

    def forward(self, text: TextBatch) -> Tensor:
        return self.table(text.positions_N + self.first)  # type: ignore[no-any-return]


class Segment(nn.Module):
    """A row of a table for all tokens of a text."""

    def __init__(self, config: SegmentConfig, width: int) -> None:
        super().__init__()
        self.index = config.index
        self.table = table(config.rows, width, config)

    def forward(self, text: TextBatch) -> Tensor:
        return self.table(text.segments_N + self.index)  # type: ignore[no-any-return]


class WholeImage(Vectors):
    """The first region's vector on each word of its example."""

    def __init__(self, config: WholeImageConfig, width: int, eps: float) -> None:
        super().__init__()
        self.missing = nn.Parameter(torch.zeros(width))
        self.norm = part_norm(config, width, eps)

    def start(self, std: float) -> None:
        nn.init.normal_(self.missing, std=std)

    def forward(self, text: TextBatch, features_RH: Tensor, regions: Packing) -> Tensor:
        """[N, H]; `features_RH` are the image's feature vectors before their norm, `regions` says whose they are."""
        seen = [row for row, length in enumerate(regions.lengths) if length]
        rows = torch.tensor(seen, dtype=torch.int64, device=features_RH.device)
        first_PH = features_RH.index_select(0, regions.starts_B1[:-1].long().index_select(0, rows))
        whole_BH = self.missing.expand(len(regions), -1).index_copy(0, rows, first_PH.to(self.missing.dtype))
        return self.norm(whole_BH.index_select(0, text.packing.examples_N))  # type: ignore[no-any-return]


class PartNorm(nn.LayerNorm):
    """A part's LayerNorm, whose gains start where the config says."""

    def __init__(self, width: int, eps: float, gain: float) -> None:
        super().__init__(width, eps=eps)
        nn.init.constant_(self.weight, gain)


def part_norm(config: NormedConfig, width: int, eps: float) -> nn.Module:
    """The norm of a part, or nothing."""
    return PartNorm(width, eps, config.init_gain) if config.norm else nn.Identity()


class Combine(nn.Module):
    """Sum or mean of the parts' vectors, then norm and dropout.

    Args:
        norm: whether there is a norm of its own.
    """

    def __init__(self, combine: Literal["sum", "mean"], width: int, eps: float, dropout: float, *, norm: bool) -> None:
        super().__init__()
        self.mean = combine == "mean"
        self.norm = nn.LayerNorm(width, eps=eps) if norm else nn.Identity()
        self.dropout = dropout

    def forward(self, vectors: Mapping[str, Tensor], norm: nn.Module | None = None) -> Tensor:
        """Vectors by part, each [N, H]; `norm` is another stream's that serves this one too."""
        first, *rest = vectors.values()
        total = sum(rest, start=first)
        normed = (norm or self.norm)(total / len(vectors) if self.mean else total)
        return dropped(normed, self.dropout, self.training)
