"""Image files: what their headers say, and the upright picture that they stand for."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
IMAGE_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""What Pillow may open (no other parser ever sees untrusted bytes), and the extension of each."""

MAX_IMAGE_BYTES = 256 << 20
MAX_PIXELS = 64 << 20
"""More is taken for an attack. Pillow keeps a pixel in 4 bytes, so 64 Mi are 256 MB, and as much again for a copy."""

_MAX_SCANS = 100
"""Of a progressive JPEG: encoders write about ten, and each goes over all pixels however few bytes it has."""


class ImageFault(ValueError):
    """Bytes that are not an image we take; the message says how, without a place."""


def open_image(data: bytes) -> Image.Image:
    """An image with its header read and its pixels not.

    Raises:
        ImageFault: not a JPEG, PNG or WebP, or far too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images and of damaged EXIF blocks
            image = Image.open(io.BytesIO(data), formats=tuple(IMAGE_FORMATS))
    except Image.DecompressionBombError:
        raise ImageFault(f"has more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        raise ImageFault("is not a JPEG, PNG or WebP image") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageFault(f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    if image.info.get("progressive") and data.count(b"\xff\xda") > _MAX_SCANS:
        raise ImageFault(f"is a JPEG of more than {_MAX_SCANS} scans")
    return image


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of the upright image in pixels, by the header alone; the head of a JPEG or PNG file is enough.

    Raises:
        ImageFault: not an image, or far too large.
    """
    return upright_size(open_image(data))


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of the usual kind: baseline, three colours of 8 bits, without EXIF block or Adobe's
    marker, of no more pixels than we take. None for all else, which `open_image` looks at: that takes five times as
    long, and a tenth of what a small photo takes to decode.
    """
    if data[:2] != b"\xff\xd8":
        return None
    size, place = None, 2
    for _ in range(_MAX_SEGMENTS):
        segment = data[place : place + 10]
        if len(segment) < 10 or segment[0] != 0xFF:
            return None
        marker = segment[1]
        if marker == _SCAN:
            return size
        if marker == _BASELINE and segment[4] == 8 and segment[9] == 3 and size is None:
            size = int.from_bytes(segment[7:9], "big"), int.from_bytes(segment[5:7], "big")
            if not 0 < size[0] * size[1] <= MAX_PIXELS:
                return None
        elif marker not in _HARMLESS:
            return None
        place += 2 + int.from_bytes(segment[2:4], "big")
    return None


_BASELINE, _SCAN = 0xC0, 0xDA
_MAX_SEGMENTS = 100
_HARMLESS = frozenset((0xC4, 0xDB, 0xDD, 0xE0, 0xE2, 0xED, 0xFE))
"""Markers of segments that change neither the size nor the sense of a picture: tables, JFIF, colour profiles, texts."""


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as `upright` has them."""
    width, height = image.size
    return (height, width) if orientation(image) in _ON_THEIR_SIDE else (width, height)


def upright(image: Image.Image) -> Image.Image:
    """The picture as people see it, which is what vlp means by an image: 8-bit RGB, turned as its EXIF block says,
    what is transparent on white, 16 bits of grey scaled to 8."""
    turn = _TURNS.get(orientation(image))
    if image.mode.startswith("I"):  # Pillow's own conversion cuts every value above 255
        plain = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    elif image.has_transparency_data:
        coloured = image.convert("RGBA")
        plain = Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured).convert("RGB")
    else:
        plain = image if image.mode == "RGB" else image.convert("RGB")
    if turn is None:
        return plain
    turned = plain.transpose(turn)
    turned.info.pop("exif", None)  # or it would be turned again
    return turned


def orientation(image: Image.Image) -> int:
    """EXIF's number of how the camera was held, 1 if upright or not said."""
    if "exif" not in image.info:  # without this, Pillow decodes a whole PNG to look for one behind the pixels
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a block that does not parse says nothing
        return 1


_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_THEIR_SIDE = (5, 6, 7, 8)


def checked_image(data: bytes) -> tuple[int, int, str]:
    """Width, height (upright) and extension (`jpg`, `png`, `webp`) of an image that decodes to its last byte.

    Raises:
        ImageFault: not an image, cut off, damaged, or far too large.
    """
    image = open_image(data)
    extension = IMAGE_FORMATS[str(image.format)]
    width, height = upright_size(image)
    loaded: Any = image
    try:
        loaded.draft("RGB", (1, 1))  # JPEG: every byte is read, but an eighth of the pixels are made
        loaded.load()
    except Exception as error:
        raise ImageFault("does not decode") from error
    return width, height, extension
