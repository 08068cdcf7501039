"""What a scene of the small world holds, and which layouts belong to train and which to dev."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

Split = Literal["train", "dev"]
Layout = tuple[int, ...]
"""The occupied cells of the 3 x 3 grid, ascending; cell 0 is top left, cell 8 bottom right."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "cyan": (40, 210, 220),
    "pink": (230, 60, 200),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
"""The palette: near the corners of the RGB cube, so that no two are confused on a grey ground."""

SHAPES = ("circle", "square", "triangle", "star", "cross")

SIZES: dict[str, tuple[float, float]] = {"small": (14.0, 18.0), "large": (26.0, 31.0)}
"""Least and greatest width in pixels. A detector's box is a few pixels off; the gap between the sizes is wider."""

PHOTO = 128
"""Width and height of a photo in pixels."""

CROWDS = (0.4, 0.3, 0.2, 0.1)
"""Shares of the scenes with 2, 3, 4 and 5 objects: mostly few, so that a first run learns to look within minutes."""

GRID = 3
_CELL = PHOTO / GRID
_JITTER = 4.0  # pixels off a cell's middle; large neighbours still stand 3 pixels apart


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene."""

    shape: str
    colour: str
    size: str
    cell: int
    centre: tuple[float, float]
    """x, y in pixels."""
    width: float
    """Pixels, before it is turned."""
    angle: float
    """Radians."""

    @property
    def column(self) -> int:
        return self.cell % GRID

    @property
    def row(self) -> int:
        return self.cell // GRID


Scene = tuple[Thing, ...]


def layouts(split: Split, dev_share: float) -> list[list[Layout]]:
    """The layouts of a split, one list per number of objects (2, 3, 4, 5).

    A layout is dev's when it is among the first `dev_share` (at least one) of its number of objects by a hash of its
    cells. It depends on no seed, so a dev scene shares its layout with no train scene of any world of that share.
    """
    result = []
    for things in range(2, 6):
        ranked = sorted(combinations(range(GRID * GRID), things), key=_rank)
        dev = max(1, round(dev_share * len(ranked)))
        result.append(sorted(ranked[:dev] if split == "dev" else ranked[dev:]))
    return result


def _rank(layout: Layout) -> bytes:
    return hashlib.blake2b(f"layout/{layout}".encode(), digest_size=8).digest()


def draw_scene(choices: list[list[Layout]], rng: np.random.Generator) -> Scene:
    """A scene of 2 to 5 objects; shape, colour and size of each are drawn uniformly and independently.

    Drawn again until two of its objects can be told from all others by size and shape, so that there is something to
    talk about. Colours take no part in that, hence stay uniform given everything else. The order of the objects is
    random, so that nothing said in this order tells where they are.
    """
    while True:
        group = choices[rng.choice(len(choices), p=CROWDS)]
        scene = tuple(_thing(cell, rng) for cell in rng.permutation(group[rng.integers(len(group))]).tolist())
        looks = [(thing.size, thing.shape) for thing in scene]
        if sum(looks.count(look) == 1 for look in looks) >= 2:
            return scene


def _thing(cell: int, rng: np.random.Generator) -> Thing:
    size = list(SIZES)[rng.integers(len(SIZES))]
    off_x, off_y = rng.uniform(-_JITTER, _JITTER, 2)
    return Thing(
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=list(COLOURS)[rng.integers(len(COLOURS))],
        size=size,
        cell=cell,
        centre=(float((cell % GRID + 0.5) * _CELL + off_x), float((cell // GRID + 0.5) * _CELL + off_y)),
        width=float(rng.uniform(*SIZES[size])),
        angle=float(rng.uniform(-0.1, 0.1)),
    )
