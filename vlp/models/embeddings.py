"""Embeddings as lists of parts: the vectors that are summed or averaged into a token.

A part is one kind of vector (`word`, `position`, `segment`, `feature`, `box`), each with its own norm if wanted.
Families differ in which parts they list: a new family is a new list, a new kind of part is one class here.

Shape suffixes: N rows of one stream; H width of the stream; D width of a region feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from vlp.config import Config
from vlp.types import RegionBatch, TextBatch


class WordConfig(Config):
    """The word table; its width is the stream's, its rows the vocabulary."""

    kind: Literal["word"]


class PositionConfig(Config):
    """A learned vector per place in the text, from 0."""

    kind: Literal["position"]


class SegmentConfig(Config):
    """One learned vector that tells this stream from others: row `index` of a segment table."""

    kind: Literal["segment"]
    rows: int = Field(2, gt=0)
    """Rows of the table."""
    index: int = Field(0, ge=0)
    """The row that this stream takes."""
    table: Literal["own", "text"] = "own"
    """`text` takes the row from the text stream's segment table instead of a table of its own."""

    @model_validator(mode="after")
    def _row_exists(self) -> Self:
        if self.table == "own" and self.index >= self.rows:
            raise ValueError(f"index {self.index} needs a table of more than {self.rows} rows")
        return self


class FeatureConfig(Config):
    """A linear projection of the region (or grid cell) feature."""

    kind: Literal["feature"]
    norm: bool = False
    """LayerNorm over the projection."""
    hidden: Literal["zero", "learned"] = "zero"
    """What marks a hidden feature: nothing (the objective zeroes it), or a learned vector of its width added to it."""


class BoxConfig(Config):
    """A linear projection of where the region lies."""

    kind: Literal["box"]
    numbers: Literal[4, 5, 7] = 7
    """4: x1, y1, x2, y2. 5: with the area. 7: with width, height and area. All as shares of the image."""
    norm: bool = False
    """LayerNorm over the projection."""


TextPart = Annotated[WordConfig | PositionConfig | SegmentConfig, Field(discriminator="kind")]
ImagePart = Annotated[FeatureConfig | BoxConfig | SegmentConfig, Field(discriminator="kind")]


class EmbeddingConfig(Config):
    """How the parts of one stream become its tokens."""

    combine: Literal["sum", "mean"] = "sum"
    """Sum of the parts, or their mean."""
    norm: bool = True
    """LayerNorm over the combination."""


class Word(nn.Module):
    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)

    def forward(self, text: TextBatch) -> Tensor:
        return self.table(text.ids_N)  # type: ignore[no-any-return]


class Position(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)

    def forward(self, text: TextBatch) -> Tensor:
        return self.table(text.positions_N)  # type: ignore[no-any-return]


class Segment(nn.Module):
    """One row of a table for all tokens; the table may be the other stream's, given at the call."""

    def __init__(self, config: SegmentConfig, width: int) -> None:
        super().__init__()
        self.index = config.index
        self.table = nn.Embedding(config.rows, width) if config.table == "own" else None

    def forward(self, rows: int, where: torch.device, other: nn.Module | None = None) -> Tensor:
        table = self.table if self.table is not None else other
        assert table is not None
        return table(torch.full((rows,), self.index, dtype=torch.int64, device=where))  # type: ignore[no-any-return]


class Feature(nn.Module):
    """Linear(D -> H) of the features, hidden ones replaced by a learned vector where the config asks for it."""

    def __init__(self, config: FeatureConfig, source_width: int, width: int, eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(source_width, width)
        self.hidden = nn.Parameter(torch.zeros(source_width)) if config.hidden == "learned" else None
        self.norm = nn.LayerNorm(width, eps=eps) if config.norm else nn.Identity()

    def forward(self, image: RegionBatch) -> Tensor:
        features_ND = image.features_MD
        if self.hidden is not None:
            # Added, not put in place: the objective decides whether the feature beneath is zeroed (Chen et al. 2020).
            features_ND = features_ND + image.hidden_M[:, None].to(features_ND.dtype) * self.hidden
        return self.norm(self.linear(features_ND))  # type: ignore[no-any-return]


class Box(nn.Module):
    def __init__(self, config: BoxConfig, width: int, eps: float) -> None:
        super().__init__()
        self.numbers = config.numbers
        self.linear = nn.Linear(config.numbers, width)
        self.norm = nn.LayerNorm(width, eps=eps) if config.norm else nn.Identity()

    def forward(self, image: RegionBatch) -> Tensor:
        return self.norm(self.linear(box_numbers(image.boxes_M4, self.numbers)))  # type: ignore[no-any-return]


def box_numbers(boxes_N4: Tensor, numbers: int) -> Tensor:
    """Boxes as 4, 5 (with area) or 7 numbers (with width, height, area), [N, numbers]."""
    if numbers == 4:
        return boxes_N4
    width_N2_height = boxes_N4[:, 2:] - boxes_N4[:, :2]
    area_N1 = width_N2_height.prod(dim=1, keepdim=True)
    return torch.cat([boxes_N4, area_N1] if numbers == 5 else [boxes_N4, width_N2_height, area_N1], dim=1)


class Combine(nn.Module):
    """Sum or mean of the parts' vectors, then norm and dropout."""

    def __init__(self, config: EmbeddingConfig, width: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.mean = config.combine == "mean"
        self.norm = nn.LayerNorm(width, eps=eps) if config.norm else nn.Identity()
        self.dropout = dropout

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Vectors by part, each [N, H]."""
        first, *rest = vectors.values()
        total = sum(rest, start=first)
        return F.dropout(self.norm(total / len(vectors) if self.mean else total), self.dropout, self.training)
