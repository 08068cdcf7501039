"""The image stream's embedding: regions of a detector, or pixels through a timm backbone, in; vectors out.

Both sources end as the same thing, a feature and a box per token (a grid cell has a box too), so the parts of an
embedding do not care where the features come from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Auto, Config
from vlp.errors import ConfigError, nearest
from vlp.models.embeddings import (
    Box,
    BoxConfig,
    Combine,
    EmbeddingConfig,
    Feature,
    FeatureConfig,
    ImagePart,
    Segment,
    SegmentConfig,
)
from vlp.models.encoder import LayerConfig
from vlp.types import PixelBatch, RegionBatch


class RegionSource(Config):
    """Features that a detector made beforehand, from the shards."""

    kind: Literal["regions"]
    width: Annotated[int, Field(gt=0)] | Auto = "auto"
    """Numbers per region; `auto` takes the shards'."""
    classes: Annotated[int, Field(gt=0)] | Auto | None = "auto"
    """Classes in the shards' class probabilities; null where there are none."""
    max_regions: int = Field(100, gt=0)
    """Regions kept per image, best confidence first."""


Spread = Annotated[float, Field(gt=0)]


class PixelSource(Config):
    """Pixels through a timm backbone; each cell of its last feature map is a token."""

    kind: Literal["pixels"]
    backbone: str
    """Name of a timm model, for instance `resnet50` or `vit_base_patch16_224`."""
    pretrained: bool = False
    """Load timm's weights (from its cache or the hub)."""
    arguments: dict[str, Any] = {}
    """Further arguments of the backbone, as timm names them."""
    level: int = -1
    """Which of the backbone's feature maps: -1 the last (coarsest), -2 the one before."""
    size: int = Field(224, gt=0)
    """Images are resized to size x size pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean per channel that is subtracted (default: ImageNet)."""
    std: tuple[Spread, Spread, Spread] = (0.229, 0.224, 0.225)
    """Standard deviation per channel that is divided by (default: ImageNet)."""
    trained: bool = True
    """Whether the backbone is trained along; its batch norms keep their statistics in any case."""


Source = Annotated[RegionSource | PixelSource, Field(discriminator="kind")]


class ImageConfig(EmbeddingConfig):
    """`image:` of a model config."""

    source: Source
    """Where the features come from."""
    layer: LayerConfig | None = None
    """Default of the blocks on this stream; null for the text stream's."""
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


class Backbone(nn.Module):
    """A timm model as a maker of grid features.

    Batch norms are replaced by their frozen twins: a batch statistic would make the loss depend on how a step is split.
    """

    def __init__(self, source: PixelSource) -> None:
        super().__init__()
        import timm
        from timm.layers import freeze_batch_norm_2d  # type: ignore[attr-defined]

        if source.backbone not in timm.list_models():
            hint = nearest(source.backbone, timm.list_models())
            raise ConfigError(f"model.image.source.backbone: timm has no '{source.backbone}'{hint}")
        try:
            network: Any = timm.create_model(
                source.backbone,
                pretrained=source.pretrained,
                features_only=True,
                out_indices=(source.level,),
                **source.arguments,
            )
            self.width = int(network.feature_info.channels()[-1])
        except (TypeError, RuntimeError, ValueError, AssertionError, LookupError, OSError) as error:
            raise ConfigError(f"model.image.source: timm cannot make '{source.backbone}' so: {error}") from None
        self.channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        self.network: nn.Module = freeze_batch_norm_2d(network)  # type: ignore[no-untyped-call]
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules()):
            raise ConfigError(
                f"model.image.source.backbone: '{source.backbone}' has batch norms that cannot be frozen, so a "
                "step would depend on how it is split; take another backbone"
            )
        self.trained = source.trained
        if not source.trained:
            self.network.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """A backbone that is not trained drops nothing either."""
        return super().train(mode and self.trained)

    def forward(self, pixels_P3HW: Tensor) -> Tensor:
        """Feature map, [P, D, h, w]."""
        features = self.network(pixels_P3HW)[-1]
        return features.permute(0, 3, 1, 2) if self.channels_last else features  # type: ignore[no-any-return]


def grid_size(source: PixelSource) -> tuple[int, int]:
    """Rows and columns of the backbone's grid, found by running it on the meta device.

    Raises:
        ConfigError: timm has no such backbone, or it takes no images of this size.
    """
    with torch.device("meta"), torch.no_grad():
        backbone = Backbone(source.model_copy(update={"pretrained": False})).eval()
        try:
            shape = backbone(torch.zeros(1, 3, source.size, source.size)).shape
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"model.image.source.size: '{source.backbone}' takes no images of {source.size} x {source.size} "
                f"pixels: {error}"
            ) from None
    return int(shape[2]), int(shape[3])


def grid_boxes(rows: int, columns: int) -> Tensor:
    """The boxes of grid cells in reading order, [rows * columns, 4] as shares of the image."""
    y, x = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    return torch.stack([x, y, x + 1 / columns, y + 1 / rows], dim=-1).flatten(0, 1)


class ImageEmbedding(nn.Module):
    """Sum or mean of the config's parts over packed image tokens."""

    def __init__(self, config: ImageConfig, layer: LayerConfig, dropout: float) -> None:
        super().__init__()
        if isinstance(config.source, PixelSource):
            self.backbone: Backbone | None = Backbone(config.source)
            source_width = self.backbone.width
        else:
            self.backbone = None
            assert isinstance(config.source.width, int)
            source_width = config.source.width
        made: dict[str, nn.Module] = {}
        for part in config.parts:
            match part:
                case FeatureConfig():
                    made[part.kind] = Feature(part, source_width, layer.width, layer.eps)
                case BoxConfig():
                    made[part.kind] = Box(part, layer.width, layer.eps)
                case SegmentConfig():
                    made[part.kind] = Segment(part, layer.width)
        self.parts = nn.ModuleDict(made)
        self.combine = Combine(config, layer.width, layer.eps, dropout)

    def forward(self, image: RegionBatch | PixelBatch, text_segments: nn.Module | None) -> Tensor:
        """Packed tokens, [M, H]; `text_segments` is the table that a shared segment part reads."""
        regions = self._grid(image) if isinstance(image, PixelBatch) else image
        vectors = {
            kind: part(len(regions.features_MD), regions.features_MD.device, text_segments)
            if kind == "segment"
            else part(regions)
            for kind, part in self.parts.items()
        }
        return self.combine(vectors)  # type: ignore[no-any-return]

    def _grid(self, image: PixelBatch) -> RegionBatch:
        """Pixels as regions: one per grid cell."""
        assert self.backbone is not None
        pixels_P3HW = image.pixels_P3HW
        if len(pixels_P3HW) == 0:  # transformers' reshapes cannot take zero images: one blank image, none of it used
            pixels_P3HW = pixels_P3HW.new_zeros(1, *pixels_P3HW.shape[1:])
        features_PDhw = self.backbone(pixels_P3HW)[: len(image.pixels_P3HW)]
        boxes_G4 = grid_boxes(*features_PDhw.shape[2:]).to(features_PDhw)
        features_MD = features_PDhw.flatten(2).transpose(1, 2).flatten(0, 1)
        hidden_M = torch.zeros(len(features_MD), dtype=torch.bool, device=features_MD.device)
        return RegionBatch(features_MD, boxes_G4.repeat(len(features_PDhw), 1), hidden_M, image.packing)
