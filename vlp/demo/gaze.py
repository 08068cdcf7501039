"""What each word of a text looks at on a photo, as pictures.

A word's gaze is the attention of its tokens on the image's tokens, a mean over heads and over the sublayers in which
the text sees the image. It says where a model reads, not why it answers (Jain and Wallace 2019, arXiv 1902.10186).

Shape suffixes: W words, M image tokens, J text and image tokens, S attention sublayers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlp.data.image import PixelImages
from vlp.data.imagefile import open_image, upright
from vlp.data.pixels import shown
from vlp.errors import ConfigError, DataError
from vlp.features.extractor import Extractor
from vlp.features.kinds import parse_what
from vlp.features.preparing import Files, Preparing
from vlp.models.backbone import grid_of
from vlp.models.patches import PatchSource
from vlp.types import Example, PixelInput

if TYPE_CHECKING:
    from vlp.vision_language_model import VisionLanguageModel

_LONGEST = 640
"""Pixels of a picture's longer side, as it is shown."""
_COLOUR = np.array([255, 64, 0], np.float32)


@dataclass(frozen=True)
class Gaze:
    """A text's words, and how much each looks at each cell of the photo."""

    words: list[str]
    weights_WRC: NDArray[np.float32]
    """Shares of a word's attention on the image, by row and column of cells; they sum to 1 less what goes to tokens of
    the whole image."""
    part: tuple[float, float, float, float]
    """The part of the photo that the model sees, x1, y1, x2, y2 as shares."""


def gaze(model: VisionLanguageModel, photo: Path, text: str) -> Gaze:
    """What each word of a text looks at.

    Raises:
        ConfigError: the model does not read photos alone, or its text never sees the image.
        DataError: the photo cannot be used.
    """
    images = model.images
    if not isinstance(images, PixelImages):
        raise ConfigError("the words' gaze is shown on a photo, and this model reads regions of a detector")
    preparing = Preparing(model)
    item = preparing.item("photo", "photo", text, Files(photo))
    if item.example is None:
        raise DataError(" ".join(item.fault or ("photo",)))
    (arrays,) = Extractor(model, parse_what("attention")).run([item.example])
    own_M = _image_rows(item.example, images)
    tokens = len(item.example.token_ids_T)
    looked_STM = arrays["attention"][:, :tokens, tokens:][:, :, own_M]
    seeing = looked_STM.sum((1, 2)) > 0
    if not seeing.any():
        raise ConfigError("in this model the text never looks at the image (the image looks at the text alone)")
    mean_TM = looked_STM[seeing].mean(0)
    words, weights_WM = _by_word(model, item.example, mean_TM)
    weights_WM /= np.maximum(weights_WM.sum(1, keepdims=True), 1e-12)
    rows, columns = _cells(model, item.example)
    cells_WRC = weights_WM[:, -rows * columns :].reshape(-1, rows, columns)  # tokens of the whole image come first
    return Gaze(words, cells_WRC, shown(*upright_picture(photo).size, images.fit, None))


def overlay(picture: Image.Image, gaze: Gaze, word: int) -> Image.Image:
    """A picture with what a word looks at in colour, the rest pale."""
    heat_RC = gaze.weights_WRC[word]
    x1, y1, x2, y2 = gaze.part
    left, top = round(x1 * picture.width), round(y1 * picture.height)
    size = max(1, round(x2 * picture.width) - left), max(1, round(y2 * picture.height) - top)
    scaled = Image.fromarray(heat_RC / max(float(heat_RC.max()), 1e-12)).resize(size, Image.Resampling.BICUBIC)
    heat_HW = np.zeros((picture.height, picture.width), np.float32)
    heat_HW[top : top + size[1], left : left + size[0]] = np.clip(np.asarray(scaled), 0, 1)
    pixels = np.asarray(picture, np.float32)
    pale = 0.45 * pixels + 0.55 * pixels.mean(2, keepdims=True)
    mixed = pale + (0.65 * heat_HW[:, :, None]) * (_COLOUR - pale)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def upright_picture(photo: Path | bytes, longest: int = _LONGEST) -> Image.Image:
    """A photo as people see it, small enough to be shown.

    Raises:
        DataError: it is no image.
    """
    try:
        opened = open_image(photo if isinstance(photo, bytes) else photo.read_bytes())
        opened.draft("RGB", (longest, longest))
        picture = upright(opened)
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        raise DataError(f"the photo cannot be shown: {error}") from None
    picture.thumbnail((longest, longest))
    return picture


def _image_rows(example: Example, images: PixelImages) -> slice:
    """The tokens of the photo among the image's, without the extra rows around them."""
    assert example.image is not None
    first = int(images.first)
    return slice(first, first + len(example.image))


def _cells(model: VisionLanguageModel, example: Example) -> tuple[int, int]:
    """Rows and columns of the photo's cells: its own where photos keep their shape."""
    assert isinstance(example.image, PixelInput)
    if example.image.grid is not None:
        return example.image.grid
    source = model.config.image.source
    grid = source.grid if isinstance(source, PatchSource) else grid_of(source)  # type: ignore[arg-type]
    return grid.rows, grid.columns


def _by_word(
    model: VisionLanguageModel, example: Example, weights_TM: NDArray[np.float32]
) -> tuple[list[str], NDArray[np.float32]]:
    """The words, and the mean of each one's tokens, [W, M]."""
    assert model.text is not None
    words, rows = [], []
    for number in dict.fromkeys(example.word_T[example.word_T >= 0].tolist()):
        own_T = example.word_T == number
        words.append(model.text.decode(example.token_ids_T[own_T].tolist()))
        rows.append(weights_TM[own_T].mean(0))
    if not rows:
        raise ConfigError("the text has no word")
    return words, np.stack(rows)
