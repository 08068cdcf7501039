"""Image files on their way into shards: read, checked, left as they are or made smaller."""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_tools.importing.record import Skip
from vlp.data.imagefile import (
    IMAGE_FORMATS,
    MAX_IMAGE_BYTES,
    ImageFault,
    checked_image,
    open_image,
    upright,
    upright_size,
)


@dataclass(frozen=True, slots=True)
class ImageRules:
    """Which images are taken, and what is made of them."""

    resize: int | None = None
    """Pixels of the short side of those whose short side is longer; None keeps the bytes of all."""
    quality: int = 90
    """Of the JPEGs that resizing makes, 1 to 100."""
    min_side: int | None = None
    max_aspect: float | None = None
    """Long side / short side."""

    @property
    def apply(self) -> bool:
        """Whether there is any."""
        return (self.resize, self.min_side, self.max_aspect) != (None, None, None)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as it goes into a shard."""

    data: bytes
    extension: str
    width: int
    """Pixels of the upright picture; bytes that are kept keep their EXIF block, which says how to turn it."""
    height: int
    resized: bool = False


def load_image(path: Path, rules: ImageRules) -> StoredImage:
    """An image file that decodes to its last byte and keeps the rules.

    Raises:
        Skip: missing, no image, damaged, too large, or against a rule.
    """
    data = _bytes_of(path)
    try:
        if rules.apply:
            image = open_image(data)
            _keep_rules(image.width, image.height, rules)
            if rules.resize is not None and min(image.size) > rules.resize:
                return _shrunk(image, rules.resize, rules.quality)
        width, height, extension = checked_image(data)
    except ImageFault as fault:
        raise Skip(f"image {fault}") from None
    return StoredImage(data, extension, width, height)


def content_hash(path: Path) -> bytes | None:
    """BLAKE2b of a file, 16 bytes: what counts as the same image. None if it cannot be read: its importer says why."""
    try:
        return hashlib.blake2b(_bytes_of(path), digest_size=16).digest()
    except Skip:
        return None


def _bytes_of(path: Path) -> bytes:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # reading a pipe would wait for ever
            raise Skip("image is no file")
        if state.st_size > MAX_IMAGE_BYTES:
            raise Skip(f"image file larger than {MAX_IMAGE_BYTES >> 20} MiB")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Skip("image missing") from None
    except OSError as error:
        raise Skip(f"image cannot be read: {error.strerror}") from None


def _keep_rules(width: int, height: int, rules: ImageRules) -> None:
    short, long = sorted((width, height))
    if rules.min_side is not None and short < rules.min_side:
        raise Skip(f"short side below --min-side {rules.min_side}")
    if rules.max_aspect is not None and long > rules.max_aspect * short:
        raise Skip(f"aspect above --max-aspect {rules.max_aspect:g}")


def _shrunk(image: Image.Image, short: int, quality: int) -> StoredImage:
    """The image with this short side, upright, as JPEG.

    A JPEG is decoded at a half, a quarter or an eighth where that leaves twice the size wanted, as Pillow's own
    thumbnails do: from there Lanczos makes what it would make of the whole.
    """
    scale = short / min(image.size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd palettes and EXIF blocks that do not matter here
            width, height = (round(side * scale) for side in upright_size(image))
            image.draft("RGB", (round(2 * image.width * scale), round(2 * image.height * scale)))
            small = upright(image).resize((width, height), Image.Resampling.LANCZOS)
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        raise ImageFault("does not decode") from error
    small.info.clear()  # comments and the like are no part of the picture
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality)
    return StoredImage(stream.getvalue(), IMAGE_FORMATS["JPEG"], small.width, small.height, resized=True)
