"""Hiding regions: which ones, and what stands in their place. Shared by all objectives that guess regions.

The choice is made once per example, so that several objectives (features and classes) guess the same regions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.config import Config
from vlp.data.image import mean_feature
from vlp.objectives.objective import Hidden
from vlp.objectives.words import choose
from vlp.types import Example


class RegionHidingConfig(Config):
    """How regions are hidden."""

    probability: float = Field(0.15, gt=0, le=1)
    """Chance of each region to be a target; at least one per image is (Chen et al. 2020, arXiv 1909.11740, 3.1)."""
    zero: float = Field(1.0, ge=0, le=1)
    """Share of the targets whose feature is replaced by zeros; the rest keeps it and is guessed all the same."""
    overlap: float = Field(1.0, gt=0, le=1)
    """Regions that overlap a target by more than this (intersection over union) are zeroed along, without being
    targets, so that the target does not show through them. 1.0 zeroes none; 0.4 as in Lu et al. 2019 (arXiv
    1908.02265)."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.zero == 0:
            raise ValueError("zero is 0, so nothing would be hidden")
        return self


def hide_regions(example: Example, config: RegionHidingConfig, rng: np.random.Generator) -> Hidden:
    """Hide some regions of an example in place; targets are where `hidden_R` is True.

    Examples without regions stay as they are.
    """
    image = example.regions
    if image is None or len(image) == 0:
        return Hidden(example, None)
    chosen_K = choose(np.arange(int(image.whole), len(image)), config.probability, rng)
    target_R = np.zeros(len(image), np.bool_)
    target_R[chosen_K] = True
    zero_R = target_R.copy()
    zero_R[chosen_K] = rng.random(len(chosen_K)) < config.zero
    if config.overlap < 1:
        zero_R |= (overlaps(image.boxes_R4)[chosen_K] > config.overlap).any(axis=0) & ~target_R
    features_RD = np.where(zero_R[:, None], np.float32(0), image.features_RD)
    if image.whole:  # what is hidden must not show through the mean
        features_RD[0] = mean_feature(image.features_RD[1:][~(zero_R | target_R)[1:]])
    example.set_regions(replace(image, features_RD=features_RD, hidden_R=target_R))
    return Hidden(example, image)


def overlaps(
    boxes_R4: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Intersection over union of every two boxes, [R, R]."""
    low = np.maximum(boxes_R4[:, None, :2], boxes_R4[None, :, :2])
    high = np.minimum(boxes_R4[:, None, 2:], boxes_R4[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    area = np.prod(boxes_R4[:, 2:] - boxes_R4[:, :2], axis=-1)
    result: NDArray[np.float32] = shared / np.maximum(area[:, None] + area[None, :] - shared, np.float32(1e-9))
    return result


def hidden_positions(hidden: Hidden) -> NDArray[np.int64]:
    """The places of the example's image that are targets."""
    image = hidden.example.regions
    if image is None or image.hidden_R is None:
        return np.zeros(0, np.int64)
    return np.flatnonzero(image.hidden_R)
