"""The parts of an image token: what it shows, and where it stands.

Parts that show something (`feature`, `box`, `shared`, `aligned`) have a row per region. Those that say where a token
stands (`segment`, `position`, `grid`) serve the extra rows too: a learned vector before or after an image's regions.

Shape suffixes: R rows of one source (regions, cells, patches); E extra rows; H width of the stream; D width of a
feature; F frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from vlp.config import Config
from vlp.models.blocks import Activation
from vlp.models.boxes import box_numbers, sine_numbers
from vlp.models.dropout import dropped
from vlp.models.embeddings import NormedConfig, SegmentConfig, TableConfig, TextTables, Vectors, part_norm, table
from vlp.models.linear import Linear
from vlp.models.sublayers import ACTIVATIONS
from vlp.types import RegionBatch, TextBatch


class FeatureConfig(NormedConfig):
    """A linear projection of the region's (or grid cell's, or patch's) feature."""

    kind: Literal["feature"]
    hidden: Literal["zero", "learned", "replaced"] = "zero"
    """What marks a hidden feature: nothing (the objective zeroes it); a learned vector of its width added to it; or one
    in its place, whatever the objective made of it."""
    box_frequencies: int | None = Field(None, gt=0)
    """Put the box before the feature, as sines and cosines of so many frequencies per number (see `boxes.py`)."""
    activation: Activation | None = None
    """A non-linearity after the projection."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a number before the projection."""


class BoxConfig(NormedConfig):
    """A linear projection of where the region lies."""

    kind: Literal["box"]
    numbers: Literal[4, 5, 7] = 7
    """4: x1, y1, x2, y2. 5: with the area. 7: with width, height and area. All as shares of the image."""
    frequencies: int | None = Field(None, gt=0)
    """Project sines and cosines of so many frequencies per number instead (see `boxes.py`)."""


class SharedConfig(Config):
    """One learned vector that all regions carry, as a word would stand for each."""

    kind: Literal["shared"]
    hidden: Literal["same", "replaced"] = "same"
    """Whether a hidden region carries another learned vector."""
    word: Literal["last"] | None = None
    """`last`: the last row of the text's word table (see `text.add_tokens`) instead of a vector of its own."""

    @model_validator(mode="after")
    def _own_or_word(self) -> Self:
        if self.word is not None and self.hidden == "replaced":
            raise ValueError("hidden: replaced is for a vector of its own, and word takes one of the text's")
        return self


class AlignedConfig(Config):
    """Mean of the position vectors of the words that a region is aligned with; nothing where it is with none."""

    kind: Literal["aligned"]


class ImagePositionConfig(TableConfig):
    """A learned vector per place, from a table by number."""

    kind: Literal["position"]
    at: Literal["index", "zero", "after_text"]
    """The place: counted in the image; 0 for all; or one behind the text's last for all (and one more for an `end`)."""
    table: Literal["own", "text"] = "own"
    """`text` takes the rows from the text stream's position table instead of a table of its own."""
    rows: int | None = Field(None, gt=0)
    """Rows of a table of its own."""
    start: Literal["random", "text"] = "random"
    """How a table of its own starts: at random, or as a copy of the text's."""

    @model_validator(mode="after")
    def _own_has_rows(self) -> Self:
        if (self.table == "own") != (self.rows is not None):
            raise ValueError("rows belong to a table of its own, which needs them")
        return self


class GridPositionConfig(Config):
    """A learned vector per cell of a grid. For another grid than its own the table is interpolated."""

    kind: Literal["grid"]
    rows: int = Field(gt=0)
    """Rows of the grid."""
    columns: int = Field(gt=0)
    """Columns of the grid."""
    align_corners: bool = True
    """Whether interpolation maps corner cells onto corner cells, or borders onto borders."""


ImagePart = Annotated[
    FeatureConfig | BoxConfig | SegmentConfig | SharedConfig | AlignedConfig | ImagePositionConfig | GridPositionConfig,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class Reading:
    """What a part may read beside its own source."""

    text: TextBatch
    tables: TextTables


@dataclass(frozen=True)
class Extra:
    """Extra rows: which examples have one, and on which side of the image's tokens it stands."""

    example_E: Tensor
    side: Literal["first", "last"]
    index_E: Tensor
    """Place in the image stream."""


class Feature(Vectors):
    """Linear(D -> H) of the features, hidden ones marked as the config says."""

    def __init__(self, config: FeatureConfig, source_width: int, width: int, eps: float) -> None:
        super().__init__()
        self.config = config
        self.linear = Linear(source_width + 8 * (config.box_frequencies or 0), width)
        # Two rows where one is added: the published tables have a row for shown features as well, which stays zero.
        rows = {"zero": 0, "learned": 2, "replaced": 1}[config.hidden]
        self.hidden = nn.Parameter(torch.zeros(rows, source_width)) if rows else None
        self.norm = part_norm(config, width, eps)

    def start(self, std: float) -> None:
        if self.hidden is not None and self.config.hidden == "learned":
            nn.init.normal_(self.hidden[1], std=std)

    def _projected(self, image: RegionBatch) -> Tensor:
        shown_RD = self._shown(image)
        if self.config.box_frequencies:
            where_RF = sine_numbers(image.boxes_M4, self.config.box_frequencies)
            shown_RD = torch.cat([where_RF.to(shown_RD.dtype), shown_RD], dim=1)
        projected_RH = self.linear(dropped(shown_RD, self.config.dropout, self.training))
        return ACTIVATIONS[self.config.activation](projected_RH) if self.config.activation else projected_RH

    def _shown(self, image: RegionBatch) -> Tensor:
        if self.hidden is None:
            return image.features_MD
        if self.config.hidden == "replaced":
            return torch.where(image.hidden_M[:, None], self.hidden[0].to(image.features_MD.dtype), image.features_MD)
        # Added, not put in place: the objective decides whether the feature beneath is zeroed (Chen et al. 2020).
        return image.features_MD + image.hidden_M[:, None].to(image.features_MD.dtype) * self.hidden[1]

    def forward(self, image: RegionBatch, reading: Reading) -> tuple[Tensor, Tensor]:
        """The vectors, and what they were before their norm, each [R, H]."""
        projected_RH = self._projected(image)
        return self.norm(projected_RH), projected_RH


class Box(nn.Module):
    def __init__(self, config: BoxConfig, width: int, eps: float) -> None:
        super().__init__()
        self.config = config
        self.linear = Linear(8 * config.frequencies if config.frequencies else config.numbers, width)
        self.norm = part_norm(config, width, eps)

    def forward(self, image: RegionBatch, reading: Reading) -> Tensor:
        boxes, frequencies = image.boxes_M4, self.config.frequencies
        numbers = sine_numbers(boxes, frequencies) if frequencies else box_numbers(boxes, self.config.numbers)
        return self.norm(self.linear(numbers))  # type: ignore[no-any-return]


class Shared(Vectors):
    def __init__(self, config: SharedConfig, width: int) -> None:
        super().__init__()
        self.word = config.word
        self.vector = nn.Parameter(torch.zeros(width)) if config.word is None else None
        self.hidden = nn.Parameter(torch.zeros(width)) if config.hidden == "replaced" else None

    def start(self, std: float) -> None:
        for vector in (self.vector, self.hidden):
            if vector is not None:
                nn.init.normal_(vector, std=std)

    def forward(self, image: RegionBatch, reading: Reading) -> Tensor:
        rows = len(image.features_MD)
        if self.vector is None:
            words = reading.tables.words
            return words(_filled(rows, words.num_embeddings - 1, image.hidden_M))  # type: ignore[no-any-return]
        if self.hidden is None:
            return self.vector.expand(rows, -1)
        return torch.where(image.hidden_M[:, None], self.hidden, self.vector)


class Aligned(nn.Module):
    def forward(self, image: RegionBatch, reading: Reading) -> Tensor:
        positions = reading.tables.positions
        assert positions is not None
        if image.aligned_MA is None:
            return image.features_MD.new_zeros(len(image.features_MD), positions.embedding_dim)
        named_RA = image.aligned_MA >= 0
        vectors_RAH = positions(image.aligned_MA.clamp_min(0) + reading.tables.first_position) * named_RA[..., None]
        return vectors_RAH.sum(1) / named_RA.sum(1, keepdim=True).clamp_min(1)  # type: ignore[no-any-return]


class ImageSegment(nn.Module):
    """One row of a table for all tokens; the table may be the text's, given at the call."""

    def __init__(self, config: SegmentConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.index = config.index
        self.table = table(config.rows, width, config) if config.table == "own" else None

    def forward(self, rows: RegionBatch | Extra, reading: Reading) -> Tensor:
        like = rows.example_E if isinstance(rows, Extra) else rows.hidden_M
        owner = self.table or reading.tables.segments
        assert owner is not None
        return owner(_filled(len(like), self.index, like))  # type: ignore[no-any-return]

    def copy_table(self, tables: TextTables) -> None:
        _copy(self.table, tables.segments, self.config.start)


class ImagePosition(nn.Module):
    def __init__(self, config: ImagePositionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.at = config.at
        self.table = table(config.rows, width, config) if config.rows is not None else None

    def forward(self, rows: RegionBatch | Extra, reading: Reading) -> Tensor:
        if isinstance(rows, Extra):
            return self._look_up(rows.index_E, rows.example_E, reading, later=int(rows.side == "last"))
        packing = rows.packing
        return self._look_up(packing.rows_N % max(packing.longest, 1), packing.examples_N, reading)

    def copy_table(self, tables: TextTables) -> None:
        """Start as the text's table, if the config says so."""
        _copy(self.table, tables.positions, self.config.start)

    def _look_up(self, index_E: Tensor, example_E: Tensor, reading: Reading, later: int = 0) -> Tensor:
        owner = self.table or reading.tables.positions
        assert owner is not None
        if self.at == "zero":
            index_E = torch.zeros_like(index_E)
        elif self.at == "after_text":
            index_E = reading.text.packing.lengths_B.index_select(0, example_E) + later
        if self.table is None:
            index_E = index_E + reading.tables.first_position
        return owner(index_E)  # type: ignore[no-any-return]


class GridPosition(Vectors):
    """Row 0 is for what stands before the grid, then its cells in reading order."""

    def __init__(self, config: GridPositionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Parameter(torch.zeros(1 + config.rows * config.columns, width))

    def start(self, std: float) -> None:
        nn.init.normal_(self.table, std=std)

    def forward(self, rows: RegionBatch | Extra, reading: Reading) -> Tensor:
        if isinstance(rows, Extra):
            return self.table[0].expand(len(rows.example_E), -1)
        own = self.config.rows, self.config.columns
        low, high, share = zip(*(self._between(rows, axis, own[axis]) for axis in (0, 1)), strict=True)
        corners = [
            (low[0], low[1], (1 - share[0]) * (1 - share[1])),
            (low[0], high[1], (1 - share[0]) * share[1]),
            (high[0], low[1], share[0] * (1 - share[1])),
            (high[0], high[1], share[0] * share[1]),
        ]
        parts = [F.embedding(1 + r * own[1] + c, self.table) * weight[:, None] for r, c, weight in corners]
        return torch.stack(parts).sum(0)

    def _between(self, image: RegionBatch, axis: int, own: int) -> tuple[Tensor, Tensor, Tensor]:
        """The table's rows (or columns) before and after each cell, and how far it lies between them."""
        cell, size = image.cells_M2[:, axis].to(self.table.dtype), image.grids_M2[:, axis]  # type: ignore[index]
        if self.config.align_corners:
            place = cell * (own - 1) / (size - 1).clamp_min(1)
        else:
            place = ((cell + 0.5) * own / size - 0.5).clamp_min(0)
        low = place.floor().long().clamp_max(own - 1)
        return low, (low + 1).clamp_max(own - 1), place - low


PlacePart = ImageSegment | ImagePosition | GridPosition
"""Parts that say where a token stands."""


def image_part(config: ImagePart, source_width: int, width: int, eps: float) -> nn.Module:
    """The module of a part.

    Args:
        source_width: numbers per feature of the source.
        width: of the stream.
    """
    match config:
        case FeatureConfig():
            return Feature(config, source_width, width, eps)
        case BoxConfig():
            return Box(config, width, eps)
        case SegmentConfig():
            return ImageSegment(config, width)
        case SharedConfig():
            return Shared(config, width)
        case AlignedConfig():
            return Aligned()
        case ImagePositionConfig():
            return ImagePosition(config, width)
        case GridPositionConfig():
            return GridPosition(config, width)


def _filled(rows: int, value: int, like: Tensor) -> Tensor:
    return torch.full((rows,), value, dtype=torch.int64, device=like.device)


def _copy(own: nn.Embedding | None, text: nn.Embedding | None, start: str) -> None:
    if start == "text":
        assert own is not None
        assert text is not None
        with torch.no_grad():
            own.weight.copy_(text.weight[: own.num_embeddings])
