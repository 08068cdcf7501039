"""Floating-point operations of one example, counted by running the model on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vlp.data.batch import collate
from vlp.data.image import BothImages, PixelImages, RegionImages
from vlp.models.image import images_of
from vlp.models.model import Network
from vlp.types import BothInput, Example, ImageInput, RegionInput


@dataclass(frozen=True)
class Flops:
    """What a forward pass of one example costs; a product and a sum are two operations, and only matrix products,
    convolutions and attention are counted. Backward costs about twice as much again."""

    text_tokens: int
    image_tokens: int
    total: int
    modules: dict[str, int]
    """By a module's name below the model."""

    def of(self, name: str) -> int:
        """Of one module and all below it."""
        return self.modules.get(name, 0)


def count_flops(model: Network, text_tokens: int, regions: int) -> Flops:
    """Count one example's operations.

    Args:
        model: on the meta device (see `meta_model`).
        text_tokens: of the text, specials included.
        regions: of the image, if the model reads regions.
    """
    zeros = np.zeros(text_tokens, np.int64)
    images = images_of(model.config.image)
    batch = collate([Example("", zeros, zeros > 0, zeros, _blank(images, regions))], images.form, {})
    counter = FlopCounterMode(display=False)
    with counter:  # with gradients: the counter's hooks stumble over views of weights without
        model.eval()(batch.to("meta"))
    name = type(model).__name__
    modules = {key.removeprefix(f"{name}."): sum(ops.values()) for key, ops in counter.get_flop_counts().items()}
    return Flops(text_tokens, batch.image.packing.tokens, counter.get_total_flops(), modules)


def head_flops(head: nn.Module, width: int) -> int:
    """Of a head on the meta device, for one row of states."""
    counter = FlopCounterMode(display=False)
    with counter:
        head(torch.zeros(1, width, device="meta"))
    return counter.get_total_flops()


def _blank(images: RegionImages | PixelImages | BothImages, regions: int) -> ImageInput:
    match images:
        case RegionImages():
            return _regions(images, regions)
        case PixelImages():
            return images.blank()
        case BothImages():
            return BothInput(_regions(images.regions, regions), images.pixels.blank())


def _regions(images: RegionImages, regions: int) -> RegionInput:
    rows = min(regions, images.max_regions) + images.whole
    features_RD = np.zeros((rows, images.feature_width), np.float32)
    return RegionInput(features_RD, np.zeros((rows, 4), np.float32), whole=images.whole)
