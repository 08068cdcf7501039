"""A small fixed detector: features, class probabilities and confidence of boxes, from a photo's pixels only.

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
_FILLED_SPREAD = 0.34
_AROUND = 16  # pixels from a box's middle to the edges of its surroundings, the same for small and large
_AROUND_MEAN, _AROUND_SPREAD = 0.34, 0.45


def detect(photo: bytes, boxes_R4: Floats) -> Regions:
    """The regions of a photo, the most confident first.

    Args:
        photo: an encoded image.
        boxes_R4: x1, y1, x2, y2 as shares of width and height.
    Returns:
        features [R, 176] as `features` says, class probabilities [R, 40] as `CLASSES` says, confidence = the largest
        of them.
    """
    pixels_HW3 = decode(photo)
    height, width, _ = pixels_HW3.shape
    edges_R4 = boxes_R4 * np.array([width, height, width, height], np.float32)
    middles_R22 = (edges_R4 + edges_R4[:, [2, 3, 0, 1]]) / 2
    around_R4 = np.asarray(middles_R22 + _AROUND * np.array([-1, -1, 1, 1]), np.float32)
    crops_RGGC = crops(pixels_HW3, edges_R4, _GRID)
    nearness_RGGP = palette_nearness(crops_RGGC)
    probs_RC = class_probs(nearness_RGGP)
    confidence_R = probs_RC.max(1)
    order = np.argsort(-confidence_R, kind="stable")
    features_RD = features(crops_RGGC, nearness_RGGP, palette_nearness(crops(pixels_HW3, around_R4, 8)))
    return Regions(features_RD[order], boxes_R4[order], confidence_R[order], probs_RC[order])


def decode(photo: bytes) -> Floats:
    """The pixels of an encoded image, [height, width, 3] in 0..255."""
    with Image.open(io.BytesIO(photo)) as image:
        return np.asarray(image.convert("RGB"), np.float32)


def crops(pixels_HW3: Floats, edges_R4: Floats, grid: int) -> Floats:
    """Each box's pixels averaged by area on a grid, [R, grid, grid, 3]; parts of pixels count as parts.

    Args:
        edges_R4: x1, y1, x2, y2 in pixels; beyond the photo its outermost pixels go on.
    """
    height, width, _ = pixels_HW3.shape
    rows_RGH = _shares(edges_R4[:, 1], edges_R4[:, 3], height, grid)
    columns_RGW = _shares(edges_R4[:, 0], edges_R4[:, 2], width, grid)
    half_RGW3 = (rows_RGH @ pixels_HW3.reshape(height, width * 3)).reshape(-1, grid, width, 3)
    return np.asarray(columns_RGW[:, None] @ half_RGW3, np.float32)


def _shares(low_R: Floats, high_R: Floats, pixels: int, grid: int) -> Floats:
    """How much of each grid cell between two edges each pixel covers, [R, grid, pixels]; each row sums to 1."""
    edges_RG = np.linspace(low_R, high_R, grid + 1, axis=1)
    first, last = edges_RG[:, :-1, None], edges_RG[:, 1:, None]
    pixel = np.arange(pixels, dtype=np.float32)
    left, right = pixel.copy(), pixel + 1
    left[0], right[-1] = -np.inf, np.inf
    covered = np.clip(np.minimum(last, right) - np.maximum(first, left), 0, None)
    return np.asarray(covered / covered.sum(2, keepdims=True), np.float32)


def palette_nearness(crops_RGGC: Floats) -> Floats:
    """How much each cell looks like each colour of the palette and, last, the ground, [R, G, G, 9]; sums to 1."""
    palette = np.array([*COLOURS.values(), _GROUND], np.float32)
    # -|crop - colour|^2 / 2, without the part that is common to all colours
    return _softmax((crops_RGGC @ palette.T - (palette**2).sum(1) / 2) / _COLOUR_WIDTH**2)


def features(crops_RGGC: Floats, nearness_RGGP: Floats, around_RGGP: Floats) -> Floats:
    """What a region looks like, [R, 176], about zero mean and unit scale.

    Mean colours on a 4 x 4 grid; on an 8 x 8 grid how much is not ground, less what is usual for objects (the outline,
    whatever the colour); and the same of the surroundings: a detector's cells see beyond the box too. Colour, shape
    and size speak about equally loudly. Without the surroundings, size had to be read off the box's numbers, and a
    tiny model's answers about it were still at chance after 1600 steps of pre-training and 400 on questions.
    """
    colours = (_means(crops_RGGC, 4) - _COLOUR_MEAN) / _COLOUR_SPREAD
    filled = (_means(1 - nearness_RGGP[..., -1:], 8) - _usual()) / _FILLED_SPREAD
    around = (_means(1 - around_RGGP[..., -1:], 8) - _AROUND_MEAN) / _AROUND_SPREAD
    return np.asarray(np.concatenate([colours, filled, around], 1), np.float32)


def _means(cells_RGGX: Floats, grid: int) -> Floats:
    """Means on a coarser grid, one row per region."""
    part = cells_RGGX.shape[1] // grid
    parts = cells_RGGX.reshape(len(cells_RGGX), grid, part, grid, part, -1)
    return np.asarray(parts.mean((2, 4)).reshape(len(cells_RGGX), -1))


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
    scales = ((0.8, 0.8), (0.8, 1.0), (1.0, 0.8), (1.0, 1.0), (1.15, 1.15))
    shifts = ((0.0, 0.0), (0.12, 0.0), (-0.12, 0.0), (0.0, 0.12), (0.0, -0.12))
    masks = [_mask(shape, scale, shift).ravel() for shape in SHAPES for scale in scales for shift in shifts]
    return _standard(np.stack(masks))


@cache
def _usual() -> Floats:
    """How much of each cell of an 8 x 8 grid is filled, mean of all shapes, [64]."""
    masks_SGG = np.stack([_mask(shape, (1.0, 1.0), (0.0, 0.0)) for shape in SHAPES])
    return np.asarray(_means(masks_SGG[..., None], 8).mean(0))


def _mask(shape: str, scale: tuple[float, float], shift: tuple[float, float]) -> Floats:
    """How much of each cell a shape fills, [16, 16] in 0..1."""
    fine = 4
    corners = (outline(shape) * scale + shift + 1) / 2 * _GRID * fine
    image = Image.new("L", (_GRID * fine, _GRID * fine))
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners.tolist()], fill=255)
    return np.asarray(np.asarray(image.reduce(fine), np.float32) / 255)


def _standard(rows: Floats) -> Floats:
    rows = rows - rows.mean(1, keepdims=True)
    return np.asarray(rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6), np.float32)


def _softmax(scores: Floats) -> Floats:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)
