"""What an image file says about itself, before its pixels are wanted."""

from __future__ import annotations

import io
import warnings
from typing import Any

from PIL import Image

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
IMAGE_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""What Pillow may open (no other parser ever sees untrusted bytes), and the extension of each."""

MAX_IMAGE_BYTES = 256 << 20
MAX_PIXELS = 128 << 20
"""More is taken for an attack: 128 Mi pixels of RGB are 400 MB in memory."""


class ImageFault(ValueError):
    """Bytes that are not an image we take; the message says how, without a place."""


def open_image(data: bytes) -> Image.Image:
    """An image with its header read and its pixels not.

    Raises:
        ImageFault: not a JPEG, PNG or WebP, or far too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=tuple(IMAGE_FORMATS))
    except Image.DecompressionBombError:
        raise ImageFault(f"has more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        raise ImageFault("is not a JPEG, PNG or WebP image") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageFault(f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the header alone; the head of a JPEG or PNG file is enough.

    Raises:
        ImageFault: not an image, or far too large.
    """
    return open_image(data).size


def checked_image(data: bytes) -> tuple[int, int, str]:
    """Width, height and extension (`jpg`, `png`, `webp`) of an image that decodes to its last byte.

    Raises:
        ImageFault: not an image, cut off, damaged, or far too large.
    """
    image = open_image(data)
    extension = IMAGE_FORMATS[str(image.format)]
    width, height = image.size
    loaded: Any = image
    try:
        loaded.draft("RGB", (1, 1))  # JPEG: every byte is read, but an eighth of the pixels are made
        loaded.load()
    except Exception as error:
        raise ImageFault("does not decode") from error
    return width, height, extension
