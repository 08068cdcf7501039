"""The bytes of an image into the pixels that a model takes: decoded, cut, scaled, mirrored, coloured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vlp.data.imagefile import ImageFault, open_image, orientation, upright, upright_size
from vlp.data.samples import Fault
from vlp.types import View

Fit = Literal["squash", "crop"]
"""How an image becomes a square: all of it squashed, or the square in its middle cut out."""

PartBox = tuple[float, float, float, float]

_YIQ_33 = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""RGB into grey and two colour axes (the NTSC standard's)."""
_RGB_33 = np.linalg.inv(_YIQ_33)


@dataclass(frozen=True)
class OwnShape:
    """Images that keep their shape, but for what is cut off it to come to whole patches."""

    shortest: int
    """Pixels of the shorter side."""
    longest: int
    """Most pixels of the longer side; where it would have more, both sides are scaled down to that."""
    patch: int
    """Pixels of a patch's side."""

    def size(self, width: float, height: float) -> tuple[int, int]:
        """Height and width that an image of any size is scaled to (Kim et al. 2021, arXiv 2102.03334, 4.1)."""
        scale = min(self.shortest / min(width, height), self.longest / max(width, height))
        down, across = (max(1, int(side * scale + 0.5) // self.patch) * self.patch for side in (height, width))
        return down, across

    @property
    def most(self) -> tuple[int, int]:
        """Height and width of the image that gives the most patches."""
        return self.size(self.longest, self.shortest)


def read_square(data: bytes, size: int, fit: Fit = "squash", view: View | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file, [3, size, size].

    Raises:
        Fault: the bytes are no image, do not decode, or hold too many pixels.
    """
    return _read(data, lambda image: square(image, size, fit, view, data))


def read_shaped(data: bytes, shape: OwnShape, view: View | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file that keeps its shape, [3, height, width].

    Raises:
        Fault: as `read_square`.
    """
    return _read(data, lambda image: shaped(image, shape, view, data))


def _read(data: bytes, make: Callable[[Image.Image], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        return make(open_image(data))
    except ImageFault as error:
        raise Fault("image", str(error)) from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        raise Fault("image", f"does not decode ({error})") from error


def square(
    image: Image.Image, size: int, fit: Fit = "squash", view: View | None = None, data: bytes | None = None
) -> NDArray[np.uint8]:
    """The pixels of a picture, [3, size, size]: turned upright, cut as `view` or else `fit` says, antialiased to size.

    A JPEG that is not decoded yet is shrunk by 2, 4 or 8 as it is, never below size.

    Args:
        data: the bytes of the file that `image` was opened from.
    """
    return _scaled(image, shown(*upright_size(image), fit, view), (size, size), view, data)


def shaped(
    image: Image.Image, shape: OwnShape, view: View | None = None, data: bytes | None = None
) -> NDArray[np.uint8]:
    """The pixels of a picture, or of the part that `view` shows, in its own shape, [3, height, width]."""
    width, height = upright_size(image)
    x1, y1, x2, y2 = part = shown(width, height, "squash", view)
    return _scaled(image, part, shape.size((x2 - x1) * width, (y2 - y1) * height), view, data)


def _scaled(
    image: Image.Image, part: PartBox, size: tuple[int, int], view: View | None, data: bytes | None
) -> NDArray[np.uint8]:
    """A part of a picture at a height and width."""
    x1, y1, x2, y2 = part
    needed = math.ceil(size[1] / (x2 - x1)), math.ceil(size[0] / (y2 - y1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd palettes and EXIF blocks, torch of read-only arrays
        whole_3HW = _decoded(image, needed if image.size == upright_size(image) else needed[::-1], data)
    height, width = whole_3HW.shape[1:]
    left, top = min(round(x1 * width), width - 1), min(round(y1 * height), height - 1)
    part_3hw = whole_3HW[:, top : max(top + 1, round(y2 * height)), left : max(left + 1, round(x2 * width))]
    # Torch's kernel for bytes takes half the time of Pillow's; they differ by at most 2 of 255.
    scaled_3HW = F.interpolate(part_3hw[None], size=size, mode="bilinear", antialias=True)[0]
    if view is None:
        return _array(scaled_3HW)
    return _coloured(_array(scaled_3HW.flip(2) if view.mirrored else scaled_3HW), view)


def _decoded(image: Image.Image, needed: tuple[int, int], data: bytes | None) -> Tensor:
    """All pixels of a picture, upright, [3, H, W]; of a JPEG that may be shrunk, at least so many across and down."""
    size_before = image.size
    image.draft("RGB", needed)
    # A JPEG that cannot be shrunk: torchvision's decoder gives the same numbers in three quarters of the time.
    if data is not None and image.format == "JPEG" and image.size == size_before and orientation(image) == 1:
        from torchvision.io import ImageReadMode, decode_jpeg

        try:
            decoded: Tensor = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
            return decoded
        except RuntimeError:
            pass  # Pillow has the last word on what does not decode
    return torch.from_numpy(np.asarray(upright(image))).permute(2, 0, 1)


def _array(pixels_3HW: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = pixels_3HW.contiguous().numpy()
    return pixels


def shown(width: int, height: int, fit: Fit, view: View | None) -> PartBox:
    """The part of an image that becomes the square, as shares of the whole: the view's, or else the model's."""
    if view is not None and view.box is not None:
        return view.box
    if fit == "squash" or not width or not height:
        return 0.0, 0.0, 1.0, 1.0
    side = min(width, height)
    x, y = (1 - side / width) / 2, (1 - side / height) / 2
    return x, y, 1 - x, 1 - y


def _coloured(pixels_3HW: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """All four changes of colour as one product and one sum, since each is linear in the values."""
    if (view.brightness, view.contrast, view.saturation, view.hue) == (1, 1, 1, 0):
        return pixels_3HW
    turn = 2 * math.pi * view.hue
    i, q = view.saturation * math.cos(turn), view.saturation * math.sin(turn)
    change_33 = _RGB_33 @ np.array([[1, 0, 0], [0, i, -q], [0, q, i]]) @ _YIQ_33
    values_3N = pixels_3HW.reshape(3, -1).astype(np.float32)
    grey = float(_YIQ_33[0] @ values_3N.mean(1))
    mixed_3N = (view.contrast * view.brightness * change_33).astype(np.float32) @ values_3N
    mixed_3N += np.float32(view.brightness * (1 - view.contrast) * grey + 0.5)  # half: to round by cutting
    changed_3N: NDArray[np.uint8] = mixed_3N.clip(0, 255).astype(np.uint8)
    return changed_3N.reshape(pixels_3HW.shape)
