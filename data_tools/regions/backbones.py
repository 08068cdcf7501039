"""Regions from a timm backbone: the cells of its last feature map, or boxes that a detector found before.

Shape suffixes: B images or crops of a batch, S side in pixels, N cells along a side of the grid, R regions, D feature
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.data.config import resolve_data_config
from torch import Tensor
from torch.nn import functional as F

from data_tools.regions.maker import Found, Photo
from data_tools.regions.networks import (
    ahead,
    choose_device,
    decoded,
    fingerprint,
    load_into,
    made_untrained,
    read_state,
)
from vlp.data.imagefile import open_image, upright
from vlp.data.pixels import read_square, square
from vlp.data.samples import Fault
from vlp.errors import ConfigError, nearest
from vlp.types import Regions, View

Pixels = NDArray[np.uint8]


class Backbone:
    """A timm model without its classifier, on a device.

    Args:
        name: of timm's, such as `resnet50`.
        weights: a file; without, timm's own, from its cache or the network.
        untrained: random weights instead, always the same ones.
        size: pixels of the square that an image becomes; None for the size that the model was trained at.
    Raises:
        ConfigError: no such model, no such weights, or it takes no images of this size.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: Path | None = None,
        untrained: bool = False,
        size: int | None = None,
        device: str = "auto",
    ) -> None:
        self.name, self.untrained = name, untrained
        self._device = choose_device(device)
        if name not in timm.list_models():
            raise ConfigError(f"--backbone: timm has no '{name}'{nearest(name, timm.list_models())}")
        network = _network(name, weights, untrained, size)
        data = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
        self.size: int = size or int(data["input_size"][-1])
        self._mean_311 = torch.tensor(data["mean"]).view(3, 1, 1).to(self._device)
        self._std_311 = torch.tensor(data["std"]).view(3, 1, 1).to(self._device)
        self.fingerprint = fingerprint(network)
        self._network = network.eval().requires_grad_(False).to(self._device)
        try:
            self.map(np.zeros((1, 3, self.size, self.size), np.uint8))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"--size {self.size}: {name} takes no images of this size: {error}") from None

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "backbone": self.name,
            "weights": self.fingerprint,
            "untrained": self.untrained,
            "size": self.size,
        }

    @torch.inference_mode()
    def map(self, pixels_B3SS: Pixels) -> Tensor:
        """The last feature map, [B, D, h, w]; tokens that stand for no place are left out."""
        states = self._network.forward_features(self._normalised(pixels_B3SS))
        if states.ndim == 3:
            states = states[:, getattr(self._network, "num_prefix_tokens", 0) :]
            rows = round(states.shape[1] ** 0.5)
            if rows * rows != states.shape[1]:
                raise ValueError(f"it gives {states.shape[1]} tokens, which make no square")
            return states.transpose(1, 2).unflatten(2, (rows, rows))  # type: ignore[no-any-return]
        if getattr(self._network, "output_fmt", "") == "NHWC":
            states = states.permute(0, 3, 1, 2)
        return states  # type: ignore[no-any-return]

    @torch.inference_mode()
    def pooled(self, pixels_B3SS: Pixels) -> Tensor:
        """One vector per image, as the model's classifier would get it, [B, D]."""
        states = self._network.forward_features(self._normalised(pixels_B3SS))
        return self._network.forward_head(states, pre_logits=True)  # type: ignore[no-any-return]

    def _normalised(self, pixels_B3SS: Pixels) -> Tensor:
        values = torch.from_numpy(pixels_B3SS).to(self._device).float() / 255
        return (values - self._mean_311) / self._std_311


class GridRegions:
    """Makes a region of each cell of a backbone's feature map, in reading order.

    Args:
        cells: along a side; the map must have a multiple of them, of which means are taken.
        batch: images that go through together; how many does not change the result.
        workers: threads that decode images.
    Raises:
        ConfigError: the map does not divide into so many cells.
    """

    wants_image, wants_regions = True, False

    def __init__(self, backbone: Backbone, cells: int, *, batch: int = 16, workers: int = 4) -> None:
        self._backbone, self._cells, self._batch, self._workers = backbone, cells, batch, workers
        blank = backbone.map(np.zeros((1, 3, backbone.size, backbone.size), np.uint8))
        rows, columns = blank.shape[2:]
        if rows % cells or columns % cells:
            raise ConfigError(
                f"--grid {cells}: {backbone.name} gives {rows} x {columns} cells at {backbone.size} pixels, which do "
                f"not divide into {cells} x {cells}; give another --grid or --size"
            )
        facts = {"grid": cells, "width": blank.shape[1]}
        self.provenance: dict[str, Any] = {"from": "grid", **backbone.provenance, **facts}
        self._boxes_R4 = _cells(cells)

    def make(self, photos: Sequence[Photo]) -> list[Found]:
        """The cells of each image; a Fault where it does not decode, None where there is no image."""
        made: list[Found] = [None] * len(photos)
        rows = [row for row, photo in enumerate(photos) if photo.image is not None]
        waiting: list[tuple[int, Pixels]] = []
        images = [photos[row].image or b"" for row in rows]
        for row, pixels in zip(rows, ahead(self._read, images, self._workers), strict=True):
            if isinstance(pixels, Fault):
                made[row] = pixels
            else:
                waiting.append((row, pixels))
            if len(waiting) == self._batch or (waiting and row == rows[-1]):
                for (place, _), regions in zip(waiting, self._regions([p for _, p in waiting]), strict=True):
                    made[place] = regions
                waiting.clear()
        return made

    def _regions(self, pixels: list[Pixels]) -> list[Regions]:
        map_BDhw = self._backbone.map(np.stack(pixels))
        cells_BDNN = F.adaptive_avg_pool2d(map_BDhw, self._cells)  # exact means, since the sides divide
        features_BRD = cells_BDNN.flatten(2).transpose(1, 2).float().cpu().numpy()
        return [Regions(np.ascontiguousarray(features_RD), self._boxes_R4) for features_RD in features_BRD]

    def _read(self, data: bytes) -> Pixels | Fault:
        return decoded(lambda: read_square(data, self._backbone.size))


class BoxRegions:
    """Gives regions that a sample has already the features of a backbone: each box is cut out and squashed.

    Boxes, confidences and classes stay as they are.

    Args:
        batch: crops that go through together; how many does not change the result.
        workers: threads that decode images.
    """

    wants_image, wants_regions = True, True

    def __init__(self, backbone: Backbone, *, batch: int = 32, workers: int = 4) -> None:
        self._backbone, self._batch, self._workers = backbone, batch, workers
        width = backbone.pooled(np.zeros((1, 3, backbone.size, backbone.size), np.uint8)).shape[1]
        self.provenance: dict[str, Any] = {"from": "boxes", **backbone.provenance, "width": width}

    def make(self, photos: Sequence[Photo]) -> list[Found]:
        """The regions of each photo; a Fault where it does not decode, None where it lacks an image or regions."""
        made: list[Found] = []
        for photo, crops in zip(photos, ahead(self._crops, photos, self._workers), strict=True):
            if photo.regions is None or crops is None or isinstance(crops, Fault):
                made.append(crops if isinstance(crops, Fault) else None)
                continue
            parts = [crops[first : first + self._batch] for first in range(0, len(crops), self._batch)]
            features_RD = torch.cat([self._backbone.pooled(part) for part in parts]).float().cpu().numpy()
            made.append(replace(photo.regions, features_RD=features_RD))
        return made

    def _crops(self, photo: Photo) -> Pixels | Fault | None:
        """[R, 3, S, S]; None for a photo without image or regions."""
        image, regions = photo.image, photo.regions
        if image is None or regions is None:
            return None

        def cut() -> Pixels:
            whole = upright(open_image(image))
            boxes = [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in regions.boxes_R4]
            return np.stack([square(whole, self._backbone.size, view=View(box=_filled(box))) for box in boxes])

        return decoded(cut)


def _filled(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """A box that holds something, be it a pixel."""
    x1, y1, x2, y2 = box
    return x1, y1, max(x2, x1 + 1e-6), max(y2, y1 + 1e-6)


def _cells(cells: int) -> NDArray[np.float32]:
    """The boxes of the cells in reading order, [cells * cells, 4]."""
    y, x = np.divmod(np.arange(cells * cells), cells)
    return (np.stack([x, y, x + 1, y + 1], axis=1) / cells).astype(np.float32)


def _network(name: str, weights: Path | None, untrained: bool, size: int | None) -> Any:
    config = timm.get_pretrained_cfg(name)
    # Models of a fixed size are told the size; the others take any.
    fixed = size is not None and config is not None and config.fixed_input_size
    arguments: dict[str, Any] = {"num_classes": 0, **({"img_size": size} if fixed else {})}
    try:
        if untrained or weights is not None:
            network: Any = made_untrained(lambda: timm.create_model(name, pretrained=False, **arguments))
        else:
            network = timm.create_model(name, pretrained=True, **arguments)
    except (TypeError, ValueError, AssertionError, LookupError, OSError, RuntimeError) as error:
        remedy = "" if untrained or weights else "; give --weights FILE, or --untrained for random weights"
        raise ConfigError(f"--backbone {name}: timm cannot make it ({str(error).splitlines()[0]}){remedy}") from None
    if weights is not None:
        classifier = (config.classifier if config is not None else None) or "classifier"
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        state = read_state(weights)
        state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{h}." for h in heads))}
        load_into(network, state, weights, name)
    return network
