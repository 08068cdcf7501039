"""Floating-point operations of an example or a batch, counted by running the model on the meta device.

Shape suffixes: P points that are counted; F features of an example's lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vlp.data.batch import collate
from vlp.data.image import BothImages, PixelImages, RegionImages
from vlp.data.packing import pack
from vlp.models.heads import Contrast
from vlp.models.image import images_of
from vlp.models.model import ModelConfig, Network, meta_model
from vlp.types import Batch, BothInput, Example, ImageInput, Packing, Read, RegionInput, Stream

_STREAMS: tuple[Stream, ...] = ("text", "image")


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


def count_flops(model: Network, text_tokens: int, regions: int | None, read: tuple[int, int] | None = None) -> Flops:
    """Count one example's operations.

    Args:
        model: on the meta device (see `meta_model`).
        text_tokens: of the text, specials included.
        regions: of the image, if the model reads regions; None for a text without an image.
        read: how many rows of text and image are read in the end; None for all.
    """
    zeros = np.zeros(text_tokens, np.int64)
    images = images_of(model.config.image)
    shown = None if regions is None else _blank(images, regions)
    batch = collate([Example("", zeros, zeros > 0, zeros, shown)], images.form, {})
    if read is not None:
        rows = zip(_STREAMS, read, strict=True)
        batch.read = {stream: Read(torch.arange(own), pack([own]), ever=own > 0) for stream, own in rows}
    counter = FlopCounterMode(display=False)
    with counter:  # with gradients: the counter's hooks stumble over views of weights without
        model.eval()(batch.to("meta"))
    name = type(model).__name__
    modules = {key.removeprefix(f"{name}."): sum(ops.values()) for key, ops in counter.get_flop_counts().items()}
    return Flops(text_tokens, batch.image.packing.tokens, counter.get_total_flops(), modules)


class Arithmetic:
    """The model's operations for any batch, without padding and without what is recomputed.

    What an example costs is a polynomial of its lengths (of t text and i image tokens, and of those of each that are
    read: `_features`), so a few examples counted once tell all others; to it come the heads, for the rows that have a
    target.

    Args:
        config: with all sizes filled in and the heads that are trained.
    """

    def __init__(self, config: ModelConfig) -> None:
        model = meta_model(config)
        longest = config.text.max_length
        short, middle, long = 3, max(4, min(8, longest)), max(5, min(20, longest))
        points: list[tuple[int, int | None]] = [(short, None), (middle, None), (long, None), (short, 9), (middle, 9)]
        if images_of(config.image).wants_regions:
            points += [(short, 3), (short, 5)]
        asked: list[tuple[int, int | None, tuple[int, int] | None]]
        asked = [(text, regions, None) for text, regions in points]
        asked += [(text, regions, (1, 0)) for text, regions in points]
        asked += [(middle, regions, (2, 0)) for regions in (None, 9)]
        asked += [(text, regions, (1, 2)) for text, regions in points if regions] + [(middle, 9, (1, 1))]
        counted = [count_flops(model, *each) for each in asked]
        features_PF = np.array([_of_one(one, read) for one, (*_, read) in zip(counted, asked, strict=True)])
        scale_F = features_PF.max(axis=0)  # so that squares of lengths and ones weigh alike
        costs_P = np.array([one.total for one in counted], np.float64)
        self._costs_F = np.linalg.lstsq(features_PF / scale_F, costs_P, rcond=None)[0] / scale_F
        self._rows = {
            name: head_flops(head, config.width(own.reads) * getattr(own, "join", 1)) / getattr(own, "join", 1)
            for (name, own), head in zip(config.heads.items(), model.heads.values(), strict=True)
        }

    def forward(self, batch: Batch) -> float:
        """Operations of a forward pass; backward costs twice as much again."""
        packings: dict[Stream, Packing] = {"text": batch.text.packing, "image": batch.image.packing}
        given = {} if batch.text.causal_B is not None else batch.read
        looks = "image" not in given or given["image"].ever
        rows = [given[s].packing.lengths if s in given else packing.lengths for s, packing in packings.items()]
        sizes = zip(batch.text.packing.lengths, batch.image.packing.lengths, zip(*rows, strict=True), strict=True)
        none = np.zeros(len(self._costs_F))
        features_F = np.sum([none, *(_features(*each, looks) for each in sizes)], axis=0)
        heads = sum(cost * len(batch.targets[name].positions_K) for name, cost in self._rows.items())
        return float(features_F @ self._costs_F) + heads


def _of_one(one: Flops, read: tuple[int, int] | None) -> NDArray[np.float64]:
    own = one.text_tokens, one.image_tokens
    return _features(*own, own, looks=True) if read is None else _features(*own, read, looks=read[1] > 0)


def _features(t: int, i: int, read: Sequence[int], looks: bool) -> NDArray[np.float64]:
    """What the operations on an example are a sum of, by its tokens and by those that are read.

    Args:
        looks: whether tokens of images are read at all, so that these look around in the last block.
    """
    r, s = read
    image = [t, i, t * i, i * i] if looks else [0, 0, 0, 0]
    return np.array([1, i > 0, t, i, t * t, i * i, t * i, r, s, r * t, r * i, s * t, s * i, *image], np.float64)


def head_flops(head: nn.Module, width: int) -> int:
    """Of a head on the meta device, for one row of states; of contrast's, for one of each stream."""
    widths = (head.text.in_features, head.image.in_features) if isinstance(head, Contrast) else (width,)
    counter = FlopCounterMode(display=False)
    with counter:
        head(*(torch.zeros(1, each, device="meta") for each in widths))
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
