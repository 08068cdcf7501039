"""From a scene to a photo (JPEG) and to the boxes a detector might draw around its objects."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_tools.world.scene import COLOURS, PHOTO, Scene, Thing

_FINE = 4  # drawn at four times the size and averaged: anti-aliased edges
_BOX_NOISE = 1.0  # standard deviation of a box's edges in pixels, cut at two


@cache
def outline(shape: str) -> NDArray[np.float64]:
    """The corners of a shape, [P, 2] as x, y; its bounding box is -1..1 both ways.

    A circle is a polygon of 48 corners: at these sizes nobody sees the difference.
    """
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    if shape == "circle":
        corners = np.stack([np.sin(turn), -np.cos(turn)], 1)
    elif shape == "square":
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    elif shape == "triangle":
        corners = np.array([[0, -1], [1, 1], [-1, 1]], float)
    elif shape == "star":
        turn = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.0, 0.4)
        corners = np.stack([np.sin(turn) * reach, -np.cos(turn) * reach], 1)
    elif shape == "cross":
        arm = 0.35
        quarter = np.array([[-arm, -1], [arm, -1], [arm, -arm]])
        turned = [quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        corners = np.concatenate(turned)
    else:
        raise AssertionError(shape)
    low, high = corners.min(0), corners.max(0)
    return np.asarray((corners - low) / (high - low) * 2 - 1)


def draw_photo(scene: Scene, rng: np.random.Generator) -> bytes:
    """The scene as a JPEG of 128 x 128 pixels, on a grey ground of uneven brightness with a little noise."""
    image = Image.fromarray(_ground(rng))
    for thing in scene:
        _paint(image, thing, rng)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling=0)
    return file.getvalue()


def _ground(rng: np.random.Generator) -> NDArray[np.uint8]:
    grey, slope_x, slope_y = rng.uniform((140, -12, -12), (165, 12, 12)).astype(np.float32)
    along = np.linspace(-1, 1, PHOTO, dtype=np.float32)
    plane = grey + slope_x * along + slope_y * along[:, None]
    noise = rng.standard_normal((PHOTO, PHOTO), dtype=np.float32) * 3
    return np.asarray((plane + noise).astype(np.uint8)[:, :, None].repeat(3, 2))


def _paint(image: Image.Image, thing: Thing, rng: np.random.Generator) -> None:
    corners = corners_of(thing)
    left, top = np.floor(corners.min(0)).astype(int)
    right, bottom = np.ceil(corners.max(0)).astype(int)
    mask = Image.new("L", (int(right - left) * _FINE, int(bottom - top) * _FINE))
    fine = ((corners - (left, top)) * _FINE - 0.5).round(3)
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in fine.tolist()], fill=255)
    shade = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3), 0, 255).tolist()
    image.paste(tuple(shade), (int(left), int(top)), mask.reduce(_FINE))


def corners_of(thing: Thing) -> NDArray[np.float64]:
    """The corners of an object in the photo, [P, 2] in pixels."""
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    turned = outline(thing.shape) @ np.array([[cos, sin], [-sin, cos]])
    return np.asarray(turned * thing.width / 2 + thing.centre)


def draw_boxes(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Boxes as a detector gives them: each edge is off by up to two pixels.

    Returns:
        [R, 4] as x1, y1, x2, y2, shares of the photo's width and height in 0..1.
    """
    corners = [corners_of(thing) for thing in scene]
    boxes = np.array([[*points.min(0), *points.max(0)] for points in corners])
    noise: Any = rng.normal(0, _BOX_NOISE, boxes.shape).clip(-2, 2)
    return np.asarray(((boxes + noise) / PHOTO).clip(0, 1), np.float32)
