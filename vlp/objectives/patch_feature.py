"""Masked patches: guess the pixels of a hidden patch, or the feature that the backbone makes of it. Sources: Kim et al.
2021 (arXiv 2102.03334), section 4.6 (masked patch prediction); targets of variance 1 are of He et al. 2022 (arXiv
2111.06377), section 3, and Baevski et al. 2022 (arXiv 2202.03555), section 3.3.

Shape suffixes: K hidden patches; D numbers of a patch or a feature; c channels, r rows and q columns of pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.errors import ConfigError
from vlp.models.backbone import Grid, PixelSource, grid_of, normalisation
from vlp.models.heads import FeatureHead, HeadConfig
from vlp.models.image import RegionSource
from vlp.models.patches import PatchSource
from vlp.objectives.objective import (
    Facts,
    Hidden,
    SelfSupervised,
    SelfSupervisedConfig,
    cosine,
    empty_positions,
    precise,
)
from vlp.seeds import Draw
from vlp.types import Batch, Encoded, FramedBatch, PixelInput, Rows, Target, Targets

_SMALLEST = 1e-6
"""Added to a variance that is divided by."""


class PatchFeatureConfig(SelfSupervisedConfig):
    """Settings of masked patches."""

    kind: Literal["patch_feature"] = "patch_feature"
    of: Literal["pixels", "features"] = "pixels"
    """What is guessed: the patch's pixels, normalised by mean and standard deviation of the model's source; or the
    feature that the model's own backbone makes of the whole image there, through which no gradient runs."""
    standardise: bool = False
    """Bring each patch's numbers to mean 0 and variance 1 first."""
    distance: Literal["mse", "smooth_l1"] = "mse"
    """Per number: squared difference, or SmoothL1 with beta 1; averaged over the numbers of a patch."""
    tied: bool = False
    """Project by the transpose of the image embedding's feature projection; for what that projection reads: pixels of
    source kind patches, features of kind pixels."""
    inner_of: str | None = None
    """The objective whose head's inner layers this one's uses, instead of having its own."""


class PatchFeature(SelfSupervised):
    """Distance of the guessed to the true numbers."""

    rows: Rows = "image"
    hides = "image"

    def __init__(self, name: str, config: PatchFeatureConfig, facts: Facts) -> None:
        super().__init__(name)
        self.config = config
        source = facts.model.image.source
        if isinstance(source, RegionSource):
            raise ConfigError(
                f"task.objectives.{name}: guesses patches of pixels, but model.image.source reads regions; remove it"
            )
        self.source, self.grid = source, source_grid(source)
        self.cell = self._cell(name)
        self.width = self.grid.width if config.of == "features" else 3 * self.cell[0] * self.cell[1]

    def _cell(self, name: str) -> tuple[int, int]:
        """Height and width of a patch or cell in pixels, where those are guessed.

        Raises:
            ConfigError: the source has not what is guessed, or the head cannot be tied to its projection.
        """
        grid, source = self.grid, self.source
        if isinstance(source, PatchSource):
            if self.config.of == "features":
                raise ConfigError(
                    f"task.objectives.{name}.of: model.image.source has no backbone to make features; say of: pixels"
                )
            return source.patch, source.patch
        size = source.size
        if self.config.of == "features":
            return 0, 0
        if not grid.rows or size % grid.rows or size % grid.columns:
            raise ConfigError(
                f"task.objectives.{name}.of: {size} x {size} pixels do not divide into the backbone's {grid.rows} x "
                f"{grid.columns} cells; change model.image.source.size, or say of: features"
            )
        if self.config.tied:
            raise ConfigError(
                f"task.objectives.{name}.tied: the projection reads the backbone's features, not pixels; remove it, or "
                "say of: features"
            )
        return size // grid.rows, size // grid.columns

    def head(self) -> HeadConfig:
        return FeatureHead(width=self.width, tied=self.config.tied, inner_of=self.config.inner_of)

    def empty(self) -> Target:
        pixels = {"pixels": np.zeros((0, self.width), np.float32)} if self.config.of == "pixels" else {}
        return Target(empty_positions(), dict(pixels))

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        image, places_K = hidden.example.image, hidden.guessed_K
        if not isinstance(image, PixelInput):
            return self.empty()
        if self.config.of == "features":
            return Target(places_K, {})
        return Target(places_K, {"pixels": self._pixels(image, image.places_K[places_K] - self.grid.prefix)})

    def _pixels(self, image: PixelInput, cells_K: NDArray[np.int64]) -> NDArray[np.float32]:
        """The normalised pixels of some cells, by channel, row, column, [K, D]."""
        height, width = self.cell
        rows, columns = image.pixels_3HW.shape[1] // height, image.pixels_3HW.shape[2] // width
        cut = image.pixels_3HW.reshape(3, rows, height, columns, width)
        picked_Kcrq = cut.transpose(1, 3, 0, 2, 4)[cells_K // columns, cells_K % columns].astype(np.float32)
        if image.pixels_3HW.dtype == np.uint8:
            mean, std = self._normalisation()
            picked_Kcrq = (picked_Kcrq / 255 - mean) / std
        flat_KD: NDArray[np.float32] = picked_Kcrq.reshape(len(cells_K), self.width)
        return flat_KD

    def _normalisation(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        source = self.source
        pair = normalisation(source) if isinstance(source, PixelSource) else (source.mean, source.std)
        mean, std = (np.array(each, np.float32)[:, None, None] for each in pair)
        return mean, std

    def reading(self, encoded: Encoded, batch: Batch) -> Encoded:
        """With the backbone's features of the targets as a tap of its own, [K, D], where they are guessed."""
        if self.config.of == "pixels":
            return encoded
        rows_K = batch.targets[self.name].positions_K
        if isinstance(batch.image, FramedBatch):  # of [tokens ; rows before ; rows after], a target is a token
            rows_K = batch.image.rows_M.index_select(0, rows_K)
        assert encoded.source_MD is not None
        return replace(encoded, taps=encoded.taps | {self.name: encoded.source_MD.index_select(0, rows_K)})

    def scores(self, head: nn.Module | None, encoded: Encoded, targets: Targets) -> Tensor:
        """What is guessed, [K, D]; and behind it, where the backbone's features are, those, [K, 2 D]."""
        guessed_KD = super().scores(head, encoded, targets)
        return guessed_KD if self.config.of == "pixels" else torch.cat([guessed_KD, encoded.taps[self.name]], dim=1)

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        guessed_KD, wanted_KD = scores_K, targets.values.get("pixels")
        if wanted_KD is None:
            guessed_KD, wanted_KD = scores_K.chunk(2, dim=1)
        wanted_KD = precise(wanted_KD)
        if self.config.standardise:
            wanted_KD = F.layer_norm(wanted_KD, (self.width,), eps=_SMALLEST)
        distance = F.mse_loss if self.config.distance == "mse" else F.smooth_l1_loss
        metrics = {f"{self.name}_cosine": cosine(guessed_KD, wanted_KD)}
        return distance(precise(guessed_KD), wanted_KD, reduction="sum") / self.width, metrics


def source_grid(source: PixelSource | PatchSource) -> Grid:
    """The tokens that a pixel source makes of one image."""
    return source.grid if isinstance(source, PatchSource) else grid_of(source)
