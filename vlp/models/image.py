"""The image stream's embedding: regions of a detector, tokens of a timm backbone, or both, in; vectors out.

Every source ends as the same thing, a feature and a box per token (a grid cell has a box too), so the parts of an
embedding do not care where the features come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Auto, Config
from vlp.data.image import AnyImages, BothImages, PixelImages, RegionImages
from vlp.models.attention import take
from vlp.models.backbone import Backbone, PixelSource, grid_of
from vlp.models.blocks import LayerConfig
from vlp.models.embeddings import Combine, EmbeddingConfig, TextTables, Vectors
from vlp.models.imageparts import Extra, ImagePart, ImagePosition, ImageSegment, PlacePart, Reading, image_part
from vlp.models.patches import Patches, PatchSource
from vlp.types import BothBatch, FramedBatch, ImageBatch, Packing, PixelBatch, RegionBatch, TextBatch


class RegionSource(Config):
    """Features that a detector made beforehand, from the shards."""

    kind: Literal["regions"]
    width: Annotated[int, Field(gt=0)] | Auto = "auto"
    """Numbers per region; `auto` takes the shards'."""
    classes: Annotated[int, Field(gt=0)] | Auto | None = "auto"
    """Classes in the shards' class probabilities, or that the shards' numbers are of; null where there are none."""
    attributes: Annotated[int, Field(gt=0)] | Auto | None = None
    """Attributes that the shards' numbers are of; null where there are none."""
    max_regions: int = Field(100, gt=0)
    """Regions kept per image, best confidence first."""
    whole: bool = False
    """Put the whole image before them as a region of its own: box 0, 0, 1, 1, feature the mean of those that are not
    hidden."""


Source = Annotated[RegionSource | PixelSource | PatchSource, Field(discriminator="kind")]


class TokensConfig(EmbeddingConfig):
    """Tokens of one source: where their features come from and what they are summed of."""

    norm: bool | Literal["text"] = True
    """LayerNorm over the combination of the parts: one of its own, the text's, or none."""
    parts: tuple[ImagePart, ...]
    """The vectors that make a token."""

    @model_validator(mode="after")
    def _has_features(self) -> Self:
        kinds = [part.kind for part in self.parts]
        if len(set(kinds)) < len(kinds):
            raise ValueError("a kind of part stands twice")
        if "feature" not in kinds:
            raise ValueError("parts need a feature")
        return self


class GridConfig(TokensConfig):
    """`image.grid:` of a model config."""

    source: PixelSource
    """The backbone."""


class ImageConfig(TokensConfig):
    """`image:` of a model config."""

    source: Source
    """Where the features come from."""
    layer: LayerConfig | None = None
    """Default of the blocks on this stream; null for the text stream's."""
    grid: GridConfig | None = None
    """A backbone over the whole picture beside the regions of `source`: its tokens follow theirs."""
    cls: bool = False
    """A learned vector before the tokens of each image; of the parts it has those that say where it stands."""
    end: bool = False
    """A learned vector after the tokens of each example's image, or alone where it has none; likewise."""

    @model_validator(mode="after")
    def _grid_beside_regions(self) -> Self:
        if self.grid is not None and not isinstance(self.source, RegionSource):
            raise ValueError("grid stands beside source.kind regions; pixels alone are a source")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if (self.cls or self.end) and self.combine == "mean":
            raise ValueError("cls and end need combine: sum")
        if not isinstance(self.source, PatchSource) and "grid" in {part.kind for part in self.parts}:
            raise ValueError("a grid of positions needs source.kind: patches")
        return self

    def without_downloads(self) -> Self:
        """The config of a model whose weights come from elsewhere: a backbone's own are not looked for."""
        return self._with_pixels(PixelSource.without_downloads)

    def filled(self) -> Self:
        """The config with what timm fixes filled in."""
        return self._with_pixels(PixelSource.filled)

    def _with_pixels(self, change: Callable[[PixelSource], PixelSource]) -> Self:
        update: dict[str, object] = {}
        if isinstance(self.source, PixelSource):
            update["source"] = change(self.source)
        if self.grid is not None:
            update["grid"] = self.grid.model_copy(update={"source": change(self.grid.source)})
        return self.model_copy(update=update)


def images_of(config: ImageConfig, *, sampled: bool = False) -> AnyImages:
    """How a model takes its images.

    Args:
        config: with sizes filled in.
        sampled: take random tokens of an image where the source says so.
    """
    if not isinstance(config.source, RegionSource):
        return replace(_pixels_of(config.source, sampled), first=config.cls, last=config.end)
    assert isinstance(config.source.width, int)
    regions = RegionImages(config.source.width, config.source.max_regions, whole=config.source.whole)
    if config.grid is None:
        return replace(regions, first=config.cls, last=config.end)
    return BothImages(regions, _pixels_of(config.grid.source, sampled), first=config.cls, last=config.end)


def _pixels_of(source: PixelSource | PatchSource, sampled: bool) -> PixelImages:
    sample = source.sample if sampled else None
    if isinstance(source, PixelSource):
        return PixelImages(source.size, grid_of(source).tokens, sample, source.fit)
    tokens = source.grid.tokens
    if source.fit == "keep":
        return PixelImages(source.size, tokens, sample, shape=source.shape)
    return PixelImages(source.size, tokens, sample, source.fit)


class Tokens(nn.Module):
    """Sum or mean of the parts over the packed tokens of one source."""

    def __init__(self, config: TokensConfig, source: Source, layer: LayerConfig, dropout: float) -> None:
        super().__init__()
        self.backbone = _backbone(source)
        width = source.width if self.backbone is None else self.backbone.grid.width  # type: ignore[union-attr]
        assert isinstance(width, int)
        made: dict[str, nn.Module] = {
            part.kind: image_part(part, width, layer.width, layer.eps) for part in config.parts
        }
        self.parts = nn.ModuleDict(made)
        self.text_norm = config.norm == "text"
        self.combine = Combine(config.combine, layer.width, layer.eps, dropout, norm=config.norm is True)

    def forward(self, image: RegionBatch | PixelBatch, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
        """Packed tokens [M, H]; their feature vectors before any norm, [M, H]; the source's own features, [M, D]."""
        regions = self._as_regions(image) if isinstance(image, PixelBatch) else image
        if regions.hidings is not None:
            raise ValueError(
                "the regions of this batch are still to be hidden; give the model what Batch.to makes of it"
            )
        source_MD = regions.features_MD
        if isinstance(image, PixelBatch) and image.hidden_M is not None:
            shown_MD = source_MD.masked_fill(image.hidden_M[:, None], 0)
            regions = replace(regions, features_MD=shown_MD, hidden_M=image.hidden_M)
        shown_MH, features_MH = self.parts["feature"](regions, reading)
        vectors = {kind: shown_MH if kind == "feature" else part(regions, reading) for kind, part in self.parts.items()}
        return self._combined(vectors, reading), features_MH, source_MD

    def _combined(self, vectors: dict[str, Tensor], reading: Reading) -> Tensor:
        return self.combine(vectors, reading.tables.norm if self.text_norm else None)  # type: ignore[no-any-return]

    def _as_regions(self, image: PixelBatch) -> RegionBatch:
        """Pixels as regions: one per token that is seen."""
        if isinstance(self.backbone, Patches):
            patches = self.backbone.cut(image)
            projection: nn.Linear = self.parts["feature"].linear  # type: ignore[assignment]
            dtype = projection.weight.dtype
            return replace(patches, features_MD=patches.features_MD.to(dtype), boxes_M4=patches.boxes_M4.to(dtype))
        assert isinstance(self.backbone, Backbone)
        images = len(image.pixels_P3HW)
        pixels_P3HW = image.pixels_P3HW
        if images == 0:  # transformers' reshapes cannot take zero images: one blank image, none of it used
            pixels_P3HW = pixels_P3HW.new_zeros(1, *pixels_P3HW.shape[1:])
        features_PLD = self.backbone(pixels_P3HW)[:images]
        boxes_L4 = self.backbone.grid.boxes().to(features_PLD)
        features_MD, boxes_M4 = features_PLD.flatten(0, 1), boxes_L4.repeat(images, 1)
        if image.kept_M is not None:
            features_MD = take(features_MD, image.kept_M)
            boxes_M4 = boxes_M4.index_select(0, image.kept_M)
        hidden_M = torch.zeros(len(features_MD), dtype=torch.bool, device=features_MD.device)
        return RegionBatch(features_MD, boxes_M4, hidden_M, image.packing)


def _backbone(source: Source) -> Backbone | Patches | None:
    match source:
        case PixelSource():
            return Backbone(source)
        case PatchSource():
            return Patches(source)
        case RegionSource():
            return None


class ExtraRow(Vectors):
    """The learned vector that a row before or after an image's tokens has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(width))

    def start(self, std: float) -> None:
        nn.init.normal_(self.vector, std=std)

    def forward(self, rows: int) -> Tensor:
        return self.vector.expand(rows, -1)


class ImageEmbedding(Tokens):
    """All of an image's tokens: those of the source, then those of the grid beside it, if there is one; and between a
    first and a last row, if there are such."""

    def __init__(self, config: ImageConfig, layer: LayerConfig, dropout: float) -> None:
        super().__init__(config, config.source, layer, dropout)
        self.grid = None if config.grid is None else Tokens(config.grid, config.grid.source, layer, dropout)
        sides = [side for side, there in (("first", config.cls), ("last", config.end)) if there]
        self.extra = nn.ModuleDict({side: ExtraRow(layer.width) for side in sides})

    def forward(  # type: ignore[override]  # of all sources, where the base is of one
        self, image: ImageBatch, text: TextBatch, tables: TextTables
    ) -> tuple[Tensor, Tensor, Packing, Tensor]:
        """Packed tokens [M, H]; the source's feature vectors before any norm, packed as the third value says; and what
        the source itself gave, before anything of a backbone's was hidden, likewise."""
        reading = Reading(text, tables)
        inner = image.tokens if isinstance(image, FramedBatch) else image
        source = inner.regions if isinstance(inner, BothBatch) else inner
        tokens_MH, features_MH, source_MD = super().forward(source, reading)
        if isinstance(inner, BothBatch):
            assert self.grid is not None
            grid_MH, _, _ = self.grid(inner.pixels, reading)
            tokens_MH = take(torch.cat([tokens_MH, grid_MH]), inner.rows_M)
        if isinstance(image, FramedBatch):
            rows = [self._extra_rows(extra, reading) for extra in extras(image) if extra.side in self.extra]
            tokens_MH = take(torch.cat([tokens_MH, *rows]), image.rows_M)
        return tokens_MH, features_MH, source.packing, source_MD

    def _extra_rows(self, extra: Extra, reading: Reading) -> Tensor:
        vectors = {"extra": self.extra[extra.side](len(extra.example_E))}
        places = {kind: part for kind, part in self.parts.items() if isinstance(part, PlacePart)}
        return self._combined(vectors | {kind: part(extra, reading) for kind, part in places.items()}, reading)

    def copy_tables(self, tables: TextTables) -> None:
        """Start the tables that the config says start as the text's."""
        for part in self.parts.values():
            if isinstance(part, ImagePosition | ImageSegment):
                part.copy_table(tables)

    def backbones(self) -> dict[str, Backbone]:
        """The timm backbones by their names here."""
        found = {"backbone": self.backbone, "grid.backbone": None if self.grid is None else self.grid.backbone}
        return {name: backbone for name, backbone in found.items() if isinstance(backbone, Backbone)}

    def own_modules(self) -> list[nn.Module]:
        """All but the backbones, whose weights timm makes."""
        sources = [tokens for tokens in (self, self.grid) if tokens is not None]
        return [*(module for tokens in sources for module in (tokens.parts, tokens.combine)), self.extra]


def extras(image: FramedBatch) -> list[Extra]:
    """The rows before and after an image's tokens."""
    last_B = image.packing.lengths_B - 1
    first = Extra(image.first_P, "first", torch.zeros_like(image.first_P))
    return [first, Extra(image.last_P, "last", last_B.index_select(0, image.last_P))]
