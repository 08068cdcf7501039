"""What users call an image, as a model takes it: pictures, paths, arrays of regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from vlp.data.image import AnyImages, BothImages, PixelImages, RegionImages
from vlp.data.imagefile import ImageFault, open_image, upright_size
from vlp.data.pixels import shown
from vlp.data.samples import REGION_ARRAYS, Fault, checked_regions, regions_npz
from vlp.errors import ConfigError, DataError, nearest
from vlp.types import BothInput, ImageInput, PixelInput, RegionInput, Regions, Sample, View

Picture = Image.Image | str | Path
"""An open picture, or the path of a JPEG, PNG or WebP file."""
RegionsLike = Regions | Mapping[str, ArrayLike] | str | Path
"""Regions of one image: a record, arrays by name, or the path of an npz of them."""


def prepared(images: AnyImages, picture: Picture | None, regions: RegionsLike | None, where: str) -> ImageInput | None:
    """One image as the model reads it; None where there is none.

    Args:
        images: how the model takes its images.
        where: which image this is, for messages.
    Raises:
        ConfigError: the model reads the other kind, or both.
        DataError: a file cannot be read, or arrays are not what they must be.
    """
    _check(images, picture, regions, where)
    try:
        match images:
            case RegionImages():
                return None if regions is None else images.prepare(_sample(picture, regions))
            case PixelImages():
                return None if picture is None else _pixels(images, picture)
            case BothImages():
                return None if picture is None or regions is None else _both(images, picture, regions)
    except Fault as fault:
        name = picture if isinstance(picture, (str, Path)) else regions if isinstance(regions, (str, Path)) else where
        raise DataError(f"{name}: {fault.member} {fault.reason}") from None
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror or error}") from None


def _check(images: AnyImages, picture: Picture | None, regions: RegionsLike | None, where: str) -> None:
    wants = {"images": images.wants_image, "regions": images.wants_regions}
    if picture is not None and not wants["images"]:
        raise ConfigError(
            f"{where}: the model reads regions of a detector, not photos; give regions=[...] as arrays of features "
            "and boxes, or the npz files that `vlp-data regions` made"
        )
    if regions is not None and not wants["regions"]:
        raise ConfigError(f"{where}: the model reads photos, not regions; give images=[...]")
    if all(wants.values()) and (picture is None) != (regions is None):
        lacking = "images" if picture is None else "regions"
        raise ConfigError(f"{where}: the model reads photos and their regions; give {lacking}=[...] too")


def _pixels(images: PixelImages, picture: Picture) -> PixelInput:
    if isinstance(picture, Image.Image):
        return images.opened(picture)
    made = images.prepare(_sample(picture, None))
    assert made is not None
    return made


def _both(images: BothImages, picture: Picture, regions: RegionsLike) -> BothInput:
    pixels = _pixels(images.pixels, picture)
    sample = _sample(None, regions)
    if images.pixels.fit != "squash":  # the regions' boxes must be of the part that the pixels show
        part = shown(*_size(picture), images.pixels.fit, None)
        sample = replace(sample, view=View(box=part))
    made = images.regions.prepare(sample)
    assert isinstance(made, RegionInput)
    return BothInput(made, pixels)


def _size(picture: Picture) -> tuple[int, int]:
    try:
        opened = picture if isinstance(picture, Image.Image) else open_image(Path(picture).read_bytes())
    except ImageFault as fault:
        raise Fault("image", str(fault)) from None
    return upright_size(opened)


def _sample(picture: Picture | None, regions: RegionsLike | None) -> Sample:
    data = Path(picture).read_bytes() if isinstance(picture, (str, Path)) else None
    return Sample("given", image=data, regions=None if regions is None else _regions(regions))


def _regions(given: RegionsLike) -> Regions:
    if isinstance(given, Regions):
        names = ("features", "boxes", "confidence", "class_probs")
        arrays: Mapping[str, Any] = dict(
            zip(names, (given.features_RD, given.boxes_R4, given.confidence_R, given.class_probs_RC), strict=True)
        )
    elif isinstance(given, Mapping):
        unknown = [name for name in given if name not in REGION_ARRAYS]
        if unknown:
            raise ConfigError(f"encode: regions have no array '{unknown[0]}'{nearest(unknown[0], REGION_ARRAYS)}")
        arrays = given
    else:
        return checked_regions(regions_npz(Path(given).read_bytes()))
    return checked_regions({name: np.asarray(array) for name, array in arrays.items() if array is not None})
