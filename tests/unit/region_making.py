"""Region files for tests, as others give them out."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 200, 100
"""Of the image that a TSV line tells of, in pixels."""


def encoded(array: NDArray[np.generic]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def pixel_boxes(count: int, number: int = 0) -> NDArray[np.float32]:
    """Boxes of which one reaches the lower right corner."""
    random = np.random.default_rng(number)
    corners = np.sort(random.random((count, 2, 2)), axis=1).reshape(count, 4) * [WIDTH, HEIGHT, WIDTH, HEIGHT]
    corners[-1, 2:] = WIDTH, HEIGHT
    return corners.astype(np.float32)


def tsv_line(
    name: str,
    columns: int = 10,
    count: int = 3,
    number: int = 0,
    sides: Sequence[int] | None = None,
    width: int = 5,
) -> str:
    """One line of a bottom-up-attention TSV with so many columns; `sides` in the order of the file."""
    random = np.random.default_rng(number)
    boxes, features = pixel_boxes(count, number), random.random((count, width)).astype(np.float32)
    confidence = random.random(count).astype(np.float32)
    if columns == 10:
        fields: list[object] = [name, *(sides or (HEIGHT, WIDTH))]
        fields += [encoded(random.integers(0, 1600, count)), encoded(confidence)]
        fields += [encoded(random.integers(0, 400, count)), encoded(confidence / 2)]
        fields += [count, encoded(boxes), encoded(features)]
    else:
        fields = [name, *(sides or (WIDTH, HEIGHT)), count, encoded(boxes), encoded(features)]
        fields += [encoded(random.random((count, 4)).astype(np.float32))] if columns == 7 else []
    return "\t".join(map(str, fields))


def write_tsv(path: Path, lines: Sequence[str], end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode())
    return path
