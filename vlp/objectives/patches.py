"""Hiding patches and cells of pixel models: which ones. What they would have shown is taken away in the model, behind
the cutting into patches or behind the backbone, as a region's feature is behind its detector.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from vlp.config import Config
from vlp.objectives.choice import choose
from vlp.objectives.objective import Hidden
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


def hide_patches(hidden: Hidden, config: PatchHidingConfig, prefix: int, rng: np.random.Generator) -> None:
    """Choose image tokens of an example to be guessed and hide them; an example without pixels stays as it is.

    Args:
        prefix: tokens of the whole image that the source puts before its cells; they are never hidden.
    """
    image = hidden.example.image
    if not isinstance(image, PixelInput):
        return
    places_K = np.flatnonzero(image.places_K >= prefix)
    guessed_K = places_K[choose(rng.random(len(places_K)), config.probability, config.at_least_one)]
    image.hidden_K = np.zeros(len(image), np.bool_)
    image.hidden_K[guessed_K] = rng.random(len(guessed_K)) < config.zero
    hidden.guessed_K = guessed_K
