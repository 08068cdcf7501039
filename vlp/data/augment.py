"""Looking at an image anew each epoch: another part, mirrored, in other colours; boxes go along with the pixels.

A view is drawn per example, before the image is decoded, by (seed, epoch, example). It says what is seen as shares of
the image, so that pixels and the boxes of regions are changed by one rule.
"""

from __future__ import annotations

import math
import re
import unicodedata
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.config import Config
from vlp.types import Sample, View

LEFT_RIGHT = (
    *("left", "right", "leftmost", "rightmost", "leftward", "rightward", "leftwards", "rightwards"),
    *("lefthand", "righthand", "clockwise", "counterclockwise", "anticlockwise"),
)
"""English words that a mirrored image makes wrong; `left-hand` is two words, and the first is one of them."""

Share = Annotated[float, Field(gt=0, le=1)]
Strength = Annotated[float, Field(ge=0, lt=1)]


class ShiftedCrop(Config):
    """The largest square of the image, anywhere along its longer side."""

    kind: Literal["shifted"]


class ResizedCrop(Config):
    """A part of the image, scaled to the model's size (Szegedy et al. 2015, arXiv 1409.4842, section 6)."""

    kind: Literal["resized"]
    area: tuple[Share, Share] = (0.5, 1.0)
    """Least and most of the image's area. The paper's 0.08 cuts away what a caption speaks of."""
    aspect: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3 / 4, 4 / 3)
    """Least and most width over height of the part, in pixels (the paper's)."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("area", "aspect"):
            least, most = getattr(self, name)
            if least > most:
                raise ValueError(f"{name} goes from {least:g} to {most:g}; give the smaller number first")
        return self


class FlipConfig(Config):
    """Left and right exchanged."""

    probability: float = Field(0.5, ge=0, le=1)
    """Chance of each example whose text may be mirrored. Questions never are."""
    keep: tuple[str, ...] = LEFT_RIGHT
    """Words and phrases that keep an example as it is, in any case of letters (default: English)."""


class ColourConfig(Config):
    """Other light and colours. A strength of 0.2 draws a factor between 0.8 and 1.2."""

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: float = Field(0.0, ge=0, le=0.5)
    """Turn of the colour circle either way; 0.5 is all of it. Makes words of colours wrong: 0.02 is hardly seen."""


class AugmentConfig(Config):
    """What training does to images; evaluation never does. Nothing by default."""

    crop: Annotated[ShiftedCrop | ResizedCrop, Field(discriminator="kind")] | None = None
    """Which part is seen; null is what the model's `fit` says."""
    flip: FlipConfig | None = None
    """Mirror images whose text does not speak of left or right."""
    colour: ColourConfig | None = None
    """Change light and colours of pixels."""


def draw_view(config: AugmentConfig, sample: Sample, text: str, *, question: bool, rng: np.random.Generator) -> View:
    """How to look at the image of `sample` beside a text.

    Whether it is mirrored depends on the text alone, never on the image, so that it does not tell a match.
    """
    # Drawn in any case and in this order, so that a word in a text changes nothing but the mirror.
    x, y, area, aspect, mirror, *light = rng.random(9).tolist()
    box = None
    if config.crop is not None:
        box = _box(config.crop, sample.width or 1, sample.height or 1, (x, y), area, aspect)
    mirrored = config.flip is not None and mirror < config.flip.probability and not question
    if mirrored and config.flip is not None:
        mirrored = not _speaks_of(text, config.flip.keep)
    colour = config.colour or ColourConfig()
    return View(
        box=box,
        mirrored=mirrored,
        brightness=_between(light[0], 1 - colour.brightness, 1 + colour.brightness),
        contrast=_between(light[1], 1 - colour.contrast, 1 + colour.contrast),
        saturation=_between(light[2], 1 - colour.saturation, 1 + colour.saturation),
        hue=_between(light[3], -colour.hue, colour.hue),
    )


def _box(
    crop: ShiftedCrop | ResizedCrop, width: int, height: int, corner: tuple[float, float], area: float, aspect: float
) -> tuple[float, float, float, float]:
    """The part as shares of the image; what would be wider or higher than it is cut to it."""
    if isinstance(crop, ShiftedCrop):
        side = min(width, height)
        across, down = side / width, side / height
    else:
        pixels = _between(area, *crop.area) * width * height
        ratio = math.exp(_between(aspect, *map(math.log, crop.aspect)))
        across, down = min(1.0, math.sqrt(pixels * ratio) / width), min(1.0, math.sqrt(pixels / ratio) / height)
    x, y = corner[0] * (1 - across), corner[1] * (1 - down)
    return x, y, x + across, y + down


def _between(share: float, low: float, high: float) -> float:
    return low + share * (high - low)


def seen(boxes_R4: NDArray[Any], view: View | None) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Which regions a view shows, and where all lie in it.

    A region is seen if its centre is; if no centre is, the region is that has most of itself in the view.

    Returns:
        rows of the regions that are seen, ascending; boxes [R, 4] as shares of what is seen, cut off at its edges.
    """
    rows, moved_R4 = np.arange(len(boxes_R4)), boxes_R4
    if view is None or not len(boxes_R4):
        return rows, moved_R4
    if view.box is not None:
        x1, y1, x2, y2 = view.box
        whole_R4 = (boxes_R4 - np.array([x1, y1, x1, y1])) / np.array([x2 - x1, y2 - y1] * 2)
        centre_R2 = (whole_R4[:, :2] + whole_R4[:, 2:]) / 2
        moved_R4 = np.clip(whole_R4, 0, 1)
        rows = np.flatnonzero(((centre_R2 >= 0) & (centre_R2 <= 1)).all(1))
        if not len(rows):
            rows = np.argmax(np.prod(moved_R4[:, 2:] - moved_R4[:, :2], axis=1), keepdims=True)
    if view.mirrored:
        moved_R4 = np.stack([1 - moved_R4[:, 2], moved_R4[:, 1], 1 - moved_R4[:, 0], moved_R4[:, 3]], axis=1)
    return rows, moved_R4


def _speaks_of(text: str, phrases: tuple[str, ...]) -> bool:
    words = f" {' '.join(_words(text))} "
    return any(phrase in words for phrase in _spaced(phrases))


@lru_cache(maxsize=8)
def _spaced(phrases: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f" {' '.join(_words(phrase))} " for phrase in phrases)


def _words(text: str) -> list[str]:
    found: list[str] = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
    return found
