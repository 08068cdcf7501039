"""The image of a sample as the model takes it: the best regions of a detector, or decoded pixels, or both."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vlp.data.augment import seen
from vlp.data.batch import ImageForm
from vlp.data.pixels import Fit, OwnShape, read_shaped, read_square, shaped, shown, square
from vlp.data.rows import Rows
from vlp.data.samples import Fault
from vlp.seeds import Draw, Draws
from vlp.types import BothInput, PixelInput, RegionInput, Sample, View


@dataclass(frozen=True)
class RegionImages:
    """Images as the regions that a detector was surest of."""

    feature_width: int
    """Numbers of one region's feature; the index says how many the shards hold."""
    max_regions: int = 36
    """Regions kept of an image (36 of bottom-up attention's fixed-size files)."""
    whole: bool = False
    """Whether the whole image stands before them as a region of its own."""
    first: bool = False
    last: bool = False
    """Whether an extra row stands before or after the image's tokens (see `ImageForm`)."""
    rows: Rows = field(default_factory=lambda: Rows(np.float32), compare=False, repr=False)
    """Where features are written."""

    wants_image: ClassVar[bool] = False
    wants_regions: ClassVar[bool] = True

    @property
    def form(self) -> ImageForm:
        return ImageForm("regions", self.feature_width, first=self.first, last=self.last)

    def tokens(self, regions: int) -> int:
        """Image tokens that a sample with so many regions gives."""
        kept = min(regions, self.max_regions)
        return self.form.framed(kept + int(self.whole and kept > 0))

    def prepare(self, sample: Sample, rng: Draw | None = None) -> RegionInput | None:
        """The best regions by confidence (the first where there is none) in the order of the shard, as float32; class
        probabilities stay as they are, since of few regions they are asked.

        None if the sample has no regions. Where a view shows a part of the image, regions outside it are left out and
        boxes are of the part; features stay what the detector made.
        """
        regions = sample.regions
        if regions is None:
            return None
        if regions.features_RD.shape[1] != self.feature_width:
            raise Fault("features", f"has {regions.features_RD.shape[1]} numbers per region, not {self.feature_width}")
        rows, boxes_R4 = seen(regions.boxes_R4, sample.view)
        kept = rows[: self.max_regions]
        if regions.confidence_R is not None and len(rows) > self.max_regions:
            kept = rows[np.sort(np.argsort(-regions.confidence_R[rows], kind="stable")[: self.max_regions])]

        whole = int(self.whole and len(kept) > 0)
        features_RD = self.rows.take(whole + len(kept), self.feature_width)
        _write(regions.features_RD[kept], features_RD[whole:])

        def taken(array: NDArray[Any] | None, dtype: Any) -> NDArray[Any] | None:
            return None if array is None else array[kept].astype(dtype, copy=False)  # indexing has made a copy

        made = RegionInput(
            features_RD=features_RD[whole:],
            boxes_R4=np.clip(boxes_R4[kept].astype(np.float32, copy=False), 0, 1),
            confidence_R=taken(regions.confidence_R, np.float32),
            class_probs_RC=None if regions.class_probs_RC is None else regions.class_probs_RC[kept],
            classes_R=taken(regions.classes_R, np.int64),
            attributes_R=taken(regions.attributes_R, np.int64),
            attribute_confidence_R=taken(regions.attribute_confidence_R, np.float32),
        )
        return with_whole(made, features_RD) if whole else made

    def batch_ends(self) -> None:
        """What was prepared has become a batch."""
        self.rows.end()


def _write(array: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Write numbers as float32; half floats as `float32` does."""
    if array.dtype == np.float16:
        torch.from_numpy(out).copy_(torch.from_numpy(array))
    else:
        out[...] = array


def float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """As float32. Numpy takes 4.5 ns for each number that it makes of two bytes, torch 0.2."""
    if array.dtype == np.float16:
        wide: NDArray[np.float32] = torch.from_numpy(array).float().numpy()
        return wide
    return array.astype(np.float32, copy=False)


@dataclass(frozen=True)
class PixelImages:
    """Images as pixels that an image backbone makes tokens of: squares, or in their own shapes."""

    size: int
    """Height and width of the square in pixels; the shorter side where images keep their shape."""
    tokens_per_image: int
    """Tokens that the backbone makes of one image; the most, where images keep their shape."""
    sample: int | None = None
    """So many of them are taken, at random; None for all."""
    fit: Fit = "squash"
    """How an image becomes a square, unless a view says otherwise."""
    shape: OwnShape | None = None
    """Images keep their shape; None for squares."""
    first: bool = False
    last: bool = False
    """Whether an extra row stands before or after the image's tokens (see `ImageForm`)."""
    rows: Rows = field(default_factory=lambda: Rows(np.uint8), compare=False, repr=False)
    """Where the pixels of squares are written."""

    wants_image: ClassVar[bool] = True
    wants_regions: ClassVar[bool] = False

    @property
    def form(self) -> ImageForm:
        return ImageForm("pixels", self.size, first=self.first, last=self.last)

    @property
    def taken(self) -> int:
        """Tokens of the backbone that are taken of an image, at most."""
        return self.tokens_per_image if self.sample is None else min(self.sample, self.tokens_per_image)

    def tokens(self, regions: int) -> int:
        """Image tokens of one image, whatever its regions; the most, where images keep their shape."""
        return self.form.framed(self.taken)

    def prepare(self, sample: Sample, rng: Draw | None = None) -> PixelInput | None:
        """The pixels, decoded, cut and antialiased to size; None if the sample has no image.

        Args:
            rng: draws the tokens that are taken, where not all are.
        Raises:
            Fault: the bytes are no image, do not decode, or hold too many pixels.
        """
        if sample.image is None:
            return None
        if self.shape is None:
            out_SS3 = self.rows.take(self.size, self.size, 3)
            made = self._input(read_square(sample.image, self.size, self.fit, sample.view, out_SS3))
        else:
            made = self._input(read_shaped(sample.image, self.shape, sample.view))
        if self.sample is not None and self.sample < made.tokens:
            assert rng is not None
            draw_T = Draws([rng.key]).apart("tokens").uniform([made.tokens])
            made.kept_K = np.sort(draw_T.argpartition(self.sample)[: self.sample])
        return made

    def opened(self, image: Image.Image) -> PixelInput:
        """The pixels of a picture that is open already."""
        return self._input(square(image, self.size, self.fit) if self.shape is None else shaped(image, self.shape))

    def blank(self) -> PixelInput:
        """A black image of as many tokens as there can be."""
        height, width = (self.size, self.size) if self.shape is None else self.shape.most
        return self._input(np.zeros((3, height, width), np.uint8))

    def batch_ends(self) -> None:
        """What was prepared has become a batch."""
        self.rows.end()

    def _input(self, pixels_3HW: NDArray[np.uint8]) -> PixelInput:
        if self.shape is None:
            return PixelInput(pixels_3HW, self.tokens_per_image)
        rows, columns = (side // self.shape.patch for side in pixels_3HW.shape[1:])
        return PixelInput(pixels_3HW, rows * columns, grid=(rows, columns))


@dataclass(frozen=True)
class BothImages:
    """Images as regions and as the tokens of a backbone over the whole picture, in this order."""

    regions: RegionImages
    pixels: PixelImages
    first: bool = False
    last: bool = False
    """Whether an extra row stands before or after the tokens of both (see `ImageForm`)."""

    wants_image: ClassVar[bool] = True
    wants_regions: ClassVar[bool] = True

    @property
    def form(self) -> ImageForm:
        width, size = self.regions.feature_width, self.pixels.size
        return ImageForm("both", width, size, first=self.first, last=self.last)

    def tokens(self, regions: int) -> int:
        """Image tokens of a sample with so many regions and a picture."""
        return self.form.framed(self.regions.tokens(regions) + self.pixels.tokens(regions))

    def prepare(self, sample: Sample, rng: Draw | None = None) -> BothInput | None:
        """Regions and pixels of the same part of the image; None if the sample has neither.

        Raises:
            Fault: the sample has only one of them, or either cannot be used.
        """
        if self.pixels.fit != "squash":  # the regions' boxes must be of the part that the pixels show
            part = shown(sample.width, sample.height, self.pixels.fit, sample.view)
            sample = replace(sample, view=replace(sample.view or View(), box=part))
        regions, pixels = self.regions.prepare(sample, rng), self.pixels.prepare(sample, rng)
        if regions is not None and pixels is not None:
            return BothInput(regions, pixels)
        if regions is None and pixels is None:
            return None
        lacking = "features" if regions is None else "image"
        raise Fault(lacking, "is missing, and the model reads both regions and pixels")

    def batch_ends(self) -> None:
        """What was prepared has become a batch."""
        self.regions.batch_ends()
        self.pixels.batch_ends()


AnyImages = RegionImages | PixelImages | BothImages


def with_whole(regions: RegionInput, features_RD: NDArray[np.float32] | None = None) -> RegionInput:
    """The regions behind one more, which is the whole image: box 0, 0, 1, 1, and the mean of the features that are not
    hidden. It has confidence 1, and neither class nor attribute.

    Args:
        features_RD: where the features are, with a row before them that is free.
    """
    rest = {f.name: _before(f.name, getattr(regions, f.name)) for f in fields(regions) if f.name != "features_RD"}
    if features_RD is None:
        features_RD = _before("features_RD", regions.features_RD)
    features_RD[0] = mean_feature(regions.features_RD)
    return RegionInput(features_RD, **{**rest, "whole": True})


def mean_feature(features_RD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of the features, [D]."""
    # A product with ones takes a third of the time of numpy's own mean.
    mean: NDArray[np.float32] = (np.ones(len(features_RD), np.float32) @ features_RD) / np.float32(
        max(1, len(features_RD))
    )
    return mean


_WHOLE: dict[str, object] = {
    "boxes_R4": [0, 0, 1, 1],
    "confidence_R": 1,
    "classes_R": -1,
    "attributes_R": -1,
    "aligned_RA": -1,
}
"""What the whole image's row holds; zeros where nothing is said."""


def _before(name: str, array: Any) -> Any:
    if not isinstance(array, np.ndarray):
        return array
    row = np.broadcast_to(np.asarray(_WHOLE.get(name, 0), array.dtype), (1, *array.shape[1:]))
    return np.concatenate([row, array])
