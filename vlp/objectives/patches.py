"""Hiding patches and cells of pixel models: which ones. What they would have shown is taken away in the model, behind
the cutting into patches or behind the backbone, as a region's feature is behind its detector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from vlp.config import Config
from vlp.data.packing import starts_of
from vlp.objectives.choice import NEVER, choose_each, parts, places_in_each
from vlp.objectives.objective import Hidden, empty_positions
from vlp.seeds import Draws
from vlp.types import PixelInput


class PatchHidingConfig(Config):
    """How image tokens made of pixels are hidden. A token of a convolutional or attending backbone has been seen by its
    neighbours before."""

    probability: float = Field(0.15, gt=0, le=1)
    """Chance of each token to be a target."""
    at_least_one: bool = True
    """Whether one token of each image is a target in any case."""
    zero: float = Field(1.0, gt=0, le=1)
    """Share of the targets whose feature is replaced by zeros, and marked by a model with a mask embedding
    (`image.parts`: `feature.hidden`); the rest keeps it and is guessed all the same."""


def hide_patches(hidden: Sequence[Hidden], config: PatchHidingConfig, prefix: int, draws: Draws) -> None:
    """Choose image tokens of each example to be guessed and hide them; examples without pixels stay as they are.

    Args:
        prefix: tokens of the whole image that the source puts before its cells; they are never hidden.
    """
    images = [each.example.image for each in hidden]
    seen = [image.places_K if isinstance(image, PixelInput) else empty_positions() for image in images]
    counts = [len(places_K) for places_K in seen]
    if not sum(counts):
        return
    starts_B1 = starts_of(counts)
    draw_N, fate_N = (draws.apart(purpose).uniform(counts) for purpose in ("chosen", "fate"))
    draw_N[np.concatenate(seen) < prefix] = NEVER
    guessed_N = choose_each(draw_N, starts_B1, config.probability, config.at_least_one)
    zeroed = parts(guessed_N & (fate_N < config.zero), starts_B1)
    for each, image, guessed_K, zeroed_K in zip(
        hidden, images, parts(*places_in_each(guessed_N, starts_B1)), zeroed, strict=True
    ):
        if isinstance(image, PixelInput):
            each.guessed_K, image.hidden_K = guessed_K, zeroed_K
