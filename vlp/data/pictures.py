"""What users call an image, as a model takes it: pictures, paths, arrays of regions."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vlp.data.image import AnyImages, BothImages, PixelImages, RegionImages
from vlp.data.imagefile import MAX_IMAGE_BYTES, ImageFault, open_image, upright_size
from vlp.data.pixels import shown
from vlp.data.samples import MAX_REGION_BYTES, REGION_ARRAYS, Fault, checked_regions, regions_npz
from vlp.errors import ConfigError, DataError, nearest
from vlp.types import BothInput, ImageInput, PixelInput, RegionInput, Regions, Sample, View

Picture = Image.Image | NDArray[np.uint8] | str | Path
"""An open picture; an array of bytes, [height, width, 3] (RGB), [height, width] (grey) or [height, width, 4] (RGBA); or
the path of a JPEG, PNG or WebP file."""
RegionsLike = Regions | Mapping[str, ArrayLike] | str | Path
"""Regions of one image: a record, arrays by name, or the path of an npz of them."""


def prepared(images: AnyImages, picture: Picture | None, regions: RegionsLike | None, where: str) -> ImageInput | None:
    """One image as the model reads it; None where there is none.

    Args:
        images: how the model takes its images.
        where: which image this is, for messages.
    Raises:
        ConfigError: the model reads the other kind, or both; or they are of a type that is neither.
        DataError: a file cannot be read, or arrays are not what they must be.
    """
    _check_types(picture, regions, where)
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
    except (OSError, ValueError) as error:
        named = error.filename if isinstance(error, OSError) else None
        given = next((each for each in (picture, regions) if isinstance(each, (str, Path))), where)
        raise DataError(f"{named or given}: {getattr(error, 'strerror', None) or error}") from None


def _check_types(picture: object, regions: object, where: str) -> None:
    if picture is not None and not isinstance(picture, (Image.Image, np.ndarray, str, Path)):
        raise ConfigError(
            f"{where}: the image is of type {type(picture).__name__}; give a picture (Pillow), an array of uint8 "
            "[height, width, 3], or the path of a file"
        )
    if regions is not None and not isinstance(regions, (Regions, Mapping, str, Path)):
        raise ConfigError(
            f"{where}: the regions are of type {type(regions).__name__}; give arrays by name (features, boxes), or the "
            "path of an npz of them"
        )


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
    if not isinstance(picture, (str, Path)):
        opened = _opened(picture)
        try:
            return images.opened(opened)  # which decodes a file that is not decoded yet, as small as it may be
        except Exception as error:  # Pillow's parsers raise whatever they stumble over
            raise Fault("image", f"does not decode ({error})") from None
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


def _opened(picture: Image.Image | NDArray[np.uint8]) -> Image.Image:
    """A picture of some pixels; raises Fault."""
    if isinstance(picture, np.ndarray):
        _check_array(picture)
        return Image.fromarray(picture)
    if 0 in picture.size:
        raise Fault("image", "has no pixel")
    return picture


def _check_array(array: NDArray[Any]) -> None:
    shape = list(array.shape)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))):
        raise Fault("image", f"is an array {shape} of {array.dtype}; give [height, width, 3] of uint8, 0 to 255")
    if not array.size:
        raise Fault("image", f"is an array {shape}, which has no pixel")


def _size(picture: Picture) -> tuple[int, int]:
    try:
        opened = open_image(_read(picture, MAX_IMAGE_BYTES)) if isinstance(picture, (str, Path)) else _opened(picture)
    except ImageFault as fault:
        raise Fault("image", str(fault)) from None
    return upright_size(opened)


def _sample(picture: Picture | None, regions: RegionsLike | None) -> Sample:
    data = _read(picture, MAX_IMAGE_BYTES) if isinstance(picture, (str, Path)) else None
    return Sample("given", image=data, regions=None if regions is None else _regions(regions))


def _read(path: str | Path, most: int) -> bytes:
    """A file of a bearable size, asked before any of it is read: a pipe would never end. Raises Fault, OSError."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise Fault("it", "is not a file")
    if status.st_size > most:
        raise Fault("it", f"has {status.st_size} bytes, more than {most}")
    return Path(path).read_bytes()


def _regions(given: RegionsLike) -> Regions:
    if isinstance(given, Regions):
        names = ("features", "boxes", "confidence", "class_probs")
        arrays: Mapping[str, Any] = dict(
            zip(names, (given.features_RD, given.boxes_R4, given.confidence_R, given.class_probs_RC), strict=True)
        )
    elif isinstance(given, Mapping):
        unknown = [name for name in given if name not in REGION_ARRAYS]
        if unknown:
            raise Fault("regions", f"have no array '{unknown[0]}'{nearest(str(unknown[0]), REGION_ARRAYS)}")
        arrays = given
    else:
        return checked_regions(regions_npz(_read(given, MAX_REGION_BYTES)))
    return checked_regions({name: _numbers(name, array) for name, array in arrays.items() if array is not None})


def _numbers(name: str, given: Any) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except (ValueError, TypeError) as error:  # rows of unequal length, a tensor on a GPU
        raise Fault(name, f"is no array of numbers ({error})") from None
