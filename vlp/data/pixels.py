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

from vlp.data.imagefile import ImageFault, open_image, orientation, plain_jpeg_size, upright, upright_size
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


Frame = Callable[[int, int], tuple[PartBox, tuple[int, int]]]
"""Of a picture's width and height: the part that is taken, and the height and width that it is scaled to."""

Decoded = tuple[Tensor, PartBox, tuple[int, int]]
"""All pixels of a picture, upright, [3, H, W]; the part that is taken, and the height and width it comes to."""

_RECENT = 8
"""Pictures that are kept as read: a matched pair and the negatives of its image stand in one slot."""
_recent: tuple[tuple[bytes, object, NDArray[np.uint8]], ...] = ()


def read_square(
    data: bytes,
    size: int,
    fit: Fit = "squash",
    view: View | None = None,
    out_SS3: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The pixels of an image file, [3, size, size].

    The array cannot be written to: pairs of one image, which stand together, share it.

    Args:
        out_SS3: where they are written, [size, size, 3], and the array is a view of it; None for memory of their own.
    Raises:
        Fault: the bytes are no image, do not decode, or hold too many pixels.
    """
    return _read(data, (size, fit, view), _square(size, fit, view), view, out_SS3)


def read_shaped(data: bytes, shape: OwnShape, view: View | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file that keeps its shape, [3, height, width]; not to be written to either.

    Raises:
        Fault: as `read_square`.
    """
    return _read(data, (shape, view), _shape(shape, view), view)


def _read(
    data: bytes, how: object, frame: Frame, view: View | None, out_HW3: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    global _recent
    for seen, before, pixels_3HW in _recent:
        if seen is data and before == how:
            return pixels_3HW if out_HW3 is None else _copied(pixels_3HW, out_HW3)
    try:
        pixels_3HW = _scaled(*(_plain(data, frame) or _opened(open_image(data), frame, data)), view, out_HW3)
    except ImageFault as error:
        raise Fault("image", str(error)) from None
    except Exception as error:  # Pillow's parsers raise whatever they stumble over
        raise Fault("image", f"does not decode ({error})") from error
    pixels_3HW.flags.writeable = False
    _recent = ((data, how, pixels_3HW), *_recent[: _RECENT - 1])
    return pixels_3HW


def _copied(pixels_3HW: NDArray[np.uint8], out_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    copy_3HW: NDArray[np.uint8] = out_HW3.transpose(2, 0, 1)
    copy_3HW[...] = pixels_3HW
    return copy_3HW


def square(image: Image.Image, size: int, fit: Fit = "squash", view: View | None = None) -> NDArray[np.uint8]:
    """The pixels of a picture, [3, size, size]: turned upright, cut as `view` or else `fit` says, antialiased to size.

    A JPEG that is not decoded yet is shrunk by 2, 4 or 8 as it is, never below size.
    """
    return _scaled(*_opened(image, _square(size, fit, view)), view)


def shaped(image: Image.Image, shape: OwnShape) -> NDArray[np.uint8]:
    """The pixels of a picture in its own shape, [3, height, width]."""
    return _scaled(*_opened(image, _shape(shape, None)))


def _square(size: int, fit: Fit, view: View | None) -> Frame:
    return lambda width, height: (shown(width, height, fit, view), (size, size))


def _shape(shape: OwnShape, view: View | None) -> Frame:
    def frame(width: int, height: int) -> tuple[PartBox, tuple[int, int]]:
        x1, y1, x2, y2 = part = shown(width, height, "squash", view)
        return part, shape.size((x2 - x1) * width, (y2 - y1) * height)

    return frame


def _plain(data: bytes, frame: Frame) -> Decoded | None:
    """A usual JPEG that is too small to be shrunk while it is decoded, without Pillow; None of all else."""
    found = plain_jpeg_size(data)
    if found is None:
        return None
    part, size = frame(*found)
    across, down = _needed(part, size)
    if found[0] >= 2 * across and found[1] >= 2 * down:
        return None
    whole_3HW = _torchvision(data)
    return None if whole_3HW is None else (whole_3HW, part, size)


def _opened(image: Image.Image, frame: Frame, data: bytes | None = None) -> Decoded:
    """Any picture; `data` are the bytes of the file that it was opened from."""
    whole = upright_size(image)
    part, size = frame(*whole)
    needed = _needed(part, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd palettes and EXIF blocks, torch of read-only arrays
        whole_3HW = _decoded(image, needed if image.size == whole else needed[::-1], data)
    return whole_3HW, part, size


def _needed(part: PartBox, size: tuple[int, int]) -> tuple[int, int]:
    """Pixels of the whole picture, across and down, of which a part comes to this height and width."""
    x1, y1, x2, y2 = part
    return math.ceil(size[1] / (x2 - x1)), math.ceil(size[0] / (y2 - y1))


def _scaled(
    whole_3HW: Tensor,
    part: PartBox,
    size: tuple[int, int],
    view: View | None = None,
    out_HW3: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """A part of a picture at a height and width, in the view's colours, in memory with the colours last."""
    x1, y1, x2, y2 = part
    height, width = whole_3HW.shape[1:]
    left, top = min(round(x1 * width), width - 1), min(round(y1 * height), height - 1)
    part_3hw = whole_3HW[:, top : max(top + 1, round(y2 * height)), left : max(left + 1, round(x2 * width))]
    if out_HW3 is None:
        out_HW3 = np.empty((*size, 3), np.uint8)
    # Torch's kernel for bytes takes half the time of Pillow's; they differ by at most 2 of 255. It takes a third less
    # where the colours of a pixel lie side by side, as decoders leave them, if the strides say so of the batch's one
    # image too: indexing with None would not. The operator is the one of `F.interpolate`, which has no `out`.
    part_13hw = part_3hw.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    scaled_13HW = torch.from_numpy(out_HW3.reshape(1, *out_HW3.shape)).permute(0, 3, 1, 2)
    torch.ops.aten._upsample_bilinear2d_aa.out(part_13hw, size, False, None, None, out=scaled_13HW)
    scaled_3HW: NDArray[np.uint8] = out_HW3.transpose(2, 0, 1)
    if view is None:
        return scaled_3HW
    if view.mirrored:
        scaled_3HW[...] = scaled_3HW[:, :, ::-1].copy()
    coloured_3HW = _coloured(scaled_3HW, view)
    return scaled_3HW if coloured_3HW is scaled_3HW else _copied(coloured_3HW, out_HW3)


def _decoded(image: Image.Image, needed: tuple[int, int], data: bytes | None) -> Tensor:
    """All pixels of a picture, upright, [3, H, W]; of a JPEG that may be shrunk, at least so many across and down."""
    size_before = image.size
    image.draft("RGB", needed)
    # A JPEG that cannot be shrunk: torchvision's decoder gives the same numbers in three quarters of the time.
    if data is not None and image.format == "JPEG" and image.size == size_before and orientation(image) == 1:
        decoded = _torchvision(data)
        if decoded is not None:
            return decoded
    return torch.from_numpy(np.asarray(upright(image))).permute(2, 0, 1)


def _torchvision(data: bytes) -> Tensor | None:
    """All pixels of a JPEG; None if it does not decode: Pillow has the last word on that."""
    from torchvision.io import ImageReadMode, decode_jpeg

    bytes_N = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # a copy, since torch warns of read-only bytes
    try:
        decoded: Tensor = decode_jpeg(bytes_N, ImageReadMode.RGB)
    except RuntimeError:
        return None
    return decoded


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
