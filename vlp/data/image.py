"""The image of a sample as the model takes it: the best regions of a detector, or decoded and normalised pixels."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from vlp.data.batch import ImageForm
from vlp.data.imagefile import ImageFault, open_image
from vlp.data.samples import Fault
from vlp.types import PixelInput, RegionInput, Sample

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class RegionImages:
    """Images as the regions that a detector was surest of."""

    feature_width: int
    """Numbers of one region's feature; the index says how many the shards hold."""
    max_regions: int = 36
    """Regions kept of an image (36 of bottom-up attention's fixed-size files)."""

    wants_image: ClassVar[bool] = False
    wants_regions: ClassVar[bool] = True

    @property
    def form(self) -> ImageForm:
        return ImageForm("regions", self.feature_width)

    def tokens(self, regions: int) -> int:
        """Image tokens that a sample with so many regions gives."""
        return min(regions, self.max_regions)

    def prepare(self, sample: Sample) -> RegionInput | None:
        """The best regions by confidence (the first where there is none) in the order of the shard, as float32.

        None if the sample has no regions. The arrays are copies: an objective may write into them.
        """
        regions = sample.regions
        if regions is None:
            return None
        if regions.features_RD.shape[1] != self.feature_width:
            raise Fault("features", f"has {regions.features_RD.shape[1]} numbers per region, not {self.feature_width}")
        kept = np.arange(min(len(regions), self.max_regions))
        if regions.confidence_R is not None:
            kept = np.sort(np.argsort(-regions.confidence_R, kind="stable")[: self.max_regions])
        confidence_R, class_probs_RC = regions.confidence_R, regions.class_probs_RC
        return RegionInput(
            features_RD=regions.features_RD[kept].astype(np.float32),
            boxes_R4=np.clip(regions.boxes_R4[kept].astype(np.float32), 0, 1),
            confidence_R=None if confidence_R is None else confidence_R[kept].astype(np.float32),
            class_probs_RC=None if class_probs_RC is None else class_probs_RC[kept].astype(np.float32),
        )


@dataclass(frozen=True)
class PixelImages:
    """Images as pixels, squashed to size x size, that an image backbone makes tokens of."""

    size: int
    """Height and width in pixels."""
    tokens_per_image: int
    """Tokens that the backbone makes of one image."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    """Per channel, of values in 0..1; the backbone's weights fix both."""

    wants_image: ClassVar[bool] = True
    wants_regions: ClassVar[bool] = False

    @property
    def form(self) -> ImageForm:
        return ImageForm("pixels", self.size)

    def tokens(self, regions: int) -> int:
        """Image tokens of one image, whatever its regions."""
        return self.tokens_per_image

    def prepare(self, sample: Sample) -> PixelInput | None:
        """The pixels, decoded, antialiased to size and normalised; None if the sample has no image.

        Raises:
            Fault: the bytes are no image, do not decode, or hold too many pixels.
        """
        if sample.image is None:
            return None
        pixels_HW3 = np.asarray(decode(sample.image, self.size))
        # (x / 255 - mean) / std as one product and one sum.
        scale_3 = 1 / (255 * np.array(self.std, np.float32))
        shift_3 = np.array(self.mean, np.float32) / np.array(self.std, np.float32)
        pixels_3HW = pixels_HW3.transpose(2, 0, 1) * scale_3[:, None, None] - shift_3[:, None, None]
        return PixelInput(np.ascontiguousarray(pixels_3HW, np.float32), self.tokens_per_image)


def decode(data: bytes, size: int) -> Image.Image:
    """An RGB image of size x size. A JPEG is shrunk by 2, 4 or 8 while it is decoded, never below size.

    Raises:
        Fault: the bytes are no image, do not decode, or hold too many pixels.
    """
    try:
        image = open_image(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd palettes and EXIF blocks that do not matter here
            image.draft("RGB", (size, size))
            return image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except ImageFault as error:
        raise Fault("image", str(error)) from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        raise Fault("image", f"does not decode ({error})") from error
