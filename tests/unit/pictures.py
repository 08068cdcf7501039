"""Image files for tests: encoded in every way, with marks that can be found again."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def ramps(width: int = 300, height: int = 200) -> Image.Image:
    """Smooth, so that JPEG and scaling change little: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def marked(width: int, height: int, box: tuple[float, float, float, float]) -> Image.Image:
    """A black picture with a white box, given as shares."""
    pixels_HW = np.zeros((height, width), np.uint8)
    x1, y1, x2, y2 = box
    pixels_HW[round(y1 * height) : round(y2 * height), round(x1 * width) : round(x2 * width)] = 255
    return Image.fromarray(pixels_HW).convert("RGB")


def found(pixels_3HW: np.ndarray) -> tuple[float, float, float, float]:
    """Where the white box lies, as shares."""
    rows, columns = np.nonzero(pixels_3HW.mean(0) > 127)
    height, width = pixels_3HW.shape[1:]
    return (
        float(columns.min() / width),
        float(rows.min() / height),
        float((columns.max() + 1) / width),
        float((rows.max() + 1) / height),
    )


def png(width: int, height: int, depth: int, colour: int, rows: list[bytes], *more: tuple[bytes, bytes]) -> bytes:
    """A PNG made by hand: of any claimed size, with 16 bits, with any chunk."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows)) if rows else b""
    chunks = [(b"IHDR", header), *more, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)
