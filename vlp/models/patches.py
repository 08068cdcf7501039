"""Pixels as patches: an image is cut into squares, and a square's numbers are its feature. The embedding's projection
of features is then the patch projection of a vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Shape suffixes: P images; L patches of one image, M of all; D numbers of a patch.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from vlp.config import Config
from vlp.data.pixels import Fit, OwnShape
from vlp.models.backbone import Grid, Triple
from vlp.types import PixelBatch, RegionBatch

Spread = Annotated[float, Field(gt=0)]


class PatchSource(Config):
    """Pixels cut into patches, which the encoder's own blocks read."""

    kind: Literal["patches"]
    size: int = Field(224, gt=0)
    """Images are squares of size x size pixels; where they keep their shape, size is their shorter side."""
    patch: int = Field(16, gt=0)
    """A patch is patch x patch pixels; `size` must be divisible by it."""
    fit: Fit | Literal["keep"] = "squash"
    """How an image becomes a square (see `PixelSource`); `keep`: it keeps its shape, cut down to whole patches. A step
    is then planned with the most patches that an image can have."""
    longest: int | None = Field(None, gt=0)
    """Longest side of an image that keeps its shape (default 1333/800 of `size`: the code of Kim et al. 2021, arXiv
    2102.03334)."""
    sample: int | None = Field(None, gt=0)
    """Pre-training takes this many random patches of an image at most, drawn anew each epoch; everything else takes
    all."""
    mean: Triple = (0.5, 0.5, 0.5)
    """Mean per channel that is subtracted."""
    std: tuple[Spread, Spread, Spread] = (0.5, 0.5, 0.5)
    """Standard deviation per channel that is divided by."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.size % self.patch:
            raise ValueError(f"size {self.size} is not divisible by patch {self.patch}")
        return self

    @model_validator(mode="after")
    def _longest_of_kept(self) -> Self:
        if self.longest is not None and self.fit != "keep":
            raise ValueError("longest is for fit: keep; squares have one size")
        if self.longest is not None and self.longest < self.size:
            raise ValueError(f"longest {self.longest} is less than size {self.size}, the shorter side")
        return self

    @property
    def shape(self) -> OwnShape | None:
        """How images keep their shape; None for squares."""
        if self.fit != "keep":
            return None
        return OwnShape(self.size, self.longest or self.size * 1333 // 800, self.patch)

    @property
    def grid(self) -> Grid:
        """The patches of one image, or of the one that has the most."""
        height, width = (self.size, self.size) if self.shape is None else self.shape.most
        return Grid(height // self.patch, width // self.patch, 0, 3 * self.patch**2)


class Patches:
    """Cuts pixels into patches. No module: it has no weights, and ZeRO would look into the record that it returns."""

    def __init__(self, source: PatchSource) -> None:
        self.source = source
        self.grid = source.grid

    def cut(self, image: PixelBatch) -> RegionBatch:
        """Patches as regions, each with its box, its cell and the grid that it is of.

        A patch's numbers go by channel, row, column. Pixels left over at the borders are dropped.
        """
        patches_PrcD = self._cut(self._normalised(image.pixels_P3HW))
        images, rows, columns = patches_PrcD.shape[:3]
        r_L, c_L = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        cells_L2 = torch.stack([r_L, c_L], dim=-1).flatten(0, 1).to(patches_PrcD.device)
        grids_P2 = image.grids_P2
        if grids_P2 is None:
            grids_P2 = torch.tensor([[rows, columns]], device=patches_PrcD.device).expand(images, 2)
        features_MD = patches_PrcD.flatten(0, 2)
        cells_M2 = cells_L2.repeat(images, 1)
        grids_M2 = grids_P2.repeat_interleave(rows * columns, dim=0)
        if image.kept_M is not None:
            features_MD = features_MD.index_select(0, image.kept_M)
            cells_M2, grids_M2 = cells_M2.index_select(0, image.kept_M), grids_M2.index_select(0, image.kept_M)
        corners = torch.cat([cells_M2.flip(1), cells_M2.flip(1) + 1], dim=1).to(features_MD.dtype)
        boxes_M4 = corners / grids_M2.flip(1).repeat(1, 2)
        hidden_M = torch.zeros(len(features_MD), dtype=torch.bool, device=features_MD.device)
        return RegionBatch(features_MD, boxes_M4, hidden_M, image.packing, cells_M2=cells_M2, grids_M2=grids_M2)

    def _normalised(self, pixels_P3HW: Tensor) -> Tensor:
        """Bytes as decoded become floats; floats are normalised already."""
        if pixels_P3HW.is_floating_point():
            return pixels_P3HW
        mean, std = (torch.tensor(each, device=pixels_P3HW.device) for each in (self.source.mean, self.source.std))
        return (pixels_P3HW.float() / 255 - mean[:, None, None]) / std[:, None, None]

    def _cut(self, pixels_P3HW: Tensor) -> Tensor:
        """[P, rows, columns, D]."""
        side = self.source.patch
        cut = pixels_P3HW.unfold(2, side, side).unfold(3, side, side)
        return cut.permute(0, 2, 3, 1, 4, 5).flatten(3)
