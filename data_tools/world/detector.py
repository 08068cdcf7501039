"""A small fixed detector: features, class probabilities and confidence of boxes, from a photo's pixels and nothing else.

It never sees a scene. What it knows of the world is what a trained detector would have learned: the palette and the
outlines of the shapes.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_tools.world.draw import outline
from data_tools.world.scene import COLOURS, SHAPES
from vlp.types import Regions

Floats = NDArray[np.float32]

CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""What a column of `class_probs` stands for."""

_GRID = 16  # cells of a crop along each side
_GROUND = (150.0, 150.0, 150.0)
_COLOUR_WIDTH = 40.0  # RGB distance at which a palette colour's pull has fallen to exp(-1/2)
_SHAPE_SHARPNESS = 25.0  # correlations of the right and the next shape are about 0.15 apart
_COLOUR_MEAN, _COLOUR_SPREAD = 140.0, 70.0  # of crops over the world: bring features to about unit scale
_FILLED_MEAN, _FILLED_SPREAD = 0.61, 0.43


def detect(photo: bytes, boxes_R4: Floats) -> Regions:
    """The regions of a photo, the most confident first.

    Args:
        photo: an encoded image.
        boxes_R4: x1, y1, x2, y2 as shares of width and height.
    Returns:
        features [R, 256] (8 x 8 mean colours, then on the same grid how much is not ground), class
        probabilities [R, 40] as `CLASSES` says, confidence = the largest of them.
    """
    crops_RGGC = crops(decode(photo), boxes_R4)
    nearness = palette_nearness(crops_RGGC)
    probs_RC = class_probs(nearness)
    confidence_R = probs_RC.max(1)
    order = np.argsort(-confidence_R, kind="stable")
    return Regions(features(crops_RGGC, nearness)[order], boxes_R4[order], confidence_R[order], probs_RC[order])


def decode(photo: bytes) -> Floats:
    """The pixels of an encoded image, [height, width, 3] in 0..255."""
    with Image.open(io.BytesIO(photo)) as image:
        return np.asarray(image.convert("RGB"), np.float32)


def crops(pixels_HW3: Floats, boxes_R4: Floats) -> Floats:
    """Each box's pixels averaged by area on a 16 x 16 grid, [R, 16, 16, 3]; parts of pixels count as parts."""
    height, width, _ = pixels_HW3.shape
    rows_RGH = _shares(boxes_R4[:, 1] * height, boxes_R4[:, 3] * height, height)
    columns_RGW = _shares(boxes_R4[:, 0] * width, boxes_R4[:, 2] * width, width)
    half_RGW3 = (rows_RGH @ pixels_HW3.reshape(height, width * 3)).reshape(-1, _GRID, width, 3)
    return np.asarray(columns_RGW[:, None] @ half_RGW3, np.float32)


def _shares(low_R: Floats, high_R: Floats, pixels: int) -> Floats:
    """How much of each grid cell between two edges each pixel covers, [R, 16, pixels]; each row sums to 1."""
    edges_RG = np.linspace(low_R, high_R, _GRID + 1, axis=1)
    first, last = edges_RG[:, :-1, None], edges_RG[:, 1:, None]
    pixel = np.arange(pixels)
    covered = np.clip(np.minimum(last, pixel + 1) - np.maximum(first, pixel), 0, None)
    return np.asarray(covered / covered.sum(2, keepdims=True), np.float32)


def palette_nearness(crops_RGGC: Floats) -> Floats:
    """How much each cell looks like each colour of the palette and, last, like the ground, [R, 16, 16, 9]; sums to 1."""
    palette = np.array([*COLOURS.values(), _GROUND], np.float32)
    # -|crop - colour|^2 / 2, without the part that is common to all colours
    return _softmax((crops_RGGC @ palette.T - (palette**2).sum(1) / 2) / _COLOUR_WIDTH**2)


def features(crops_RGGC: Floats, nearness_RGGP: Floats) -> Floats:
    """What a region looks like, [R, 256], about zero mean and unit scale."""
    colours = (_halved(crops_RGGC) - _COLOUR_MEAN) / _COLOUR_SPREAD
    filled = (_halved(1 - nearness_RGGP[..., -1:]) - _FILLED_MEAN) / _FILLED_SPREAD
    return np.asarray(np.concatenate([colours, filled], 1), np.float32)


def _halved(cells_RGGX: Floats) -> Floats:
    """Means of 2 x 2 cells, one row per region."""
    halves = cells_RGGX.reshape(len(cells_RGGX), _GRID // 2, 2, _GRID // 2, 2, -1)
    return np.asarray(halves.mean((2, 4)).reshape(len(cells_RGGX), -1))


def class_probs(nearness_RGGP: Floats) -> Floats:
    """Probability of each of `CLASSES`, [R, 40]: of its colour by the palette times of its shape by templates."""
    regions = len(nearness_RGGP)
    colour = nearness_RGGP[..., :-1].mean((1, 2)) ** 2
    colour /= colour.sum(1, keepdims=True)
    filled = _standard(1 - nearness_RGGP[..., -1].reshape(regions, -1))
    likeness = (filled @ _templates().T).reshape(regions, len(SHAPES), -1).max(2)
    shape = _softmax(likeness * _SHAPE_SHARPNESS)
    return np.asarray((colour[:, :, None] * shape[:, None, :]).reshape(regions, -1), np.float32)


@cache
def _templates() -> Floats:
    """Every shape as it fills a box that is a little off, [shapes x boxes, 256], each of zero mean and unit length."""
    fine = 4
    rows = []
    for shape in SHAPES:
        for scale in ((0.8, 0.8), (0.8, 1.0), (1.0, 0.8), (1.0, 1.0), (1.15, 1.15)):
            for shift in ((0.0, 0.0), (0.12, 0.0), (-0.12, 0.0), (0.0, 0.12), (0.0, -0.12)):
                corners = (outline(shape) * scale + shift + 1) / 2 * _GRID * fine
                mask = Image.new("L", (_GRID * fine, _GRID * fine))
                ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners.tolist()], fill=255)
                rows.append(np.asarray(mask.reduce(fine), np.float32).ravel())
    return _standard(np.stack(rows))


def _standard(rows: Floats) -> Floats:
    rows = rows - rows.mean(1, keepdims=True)
    return np.asarray(rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6), np.float32)


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)
