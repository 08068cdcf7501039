"""Hiding regions: which ones, and what stands in their place. Shared by all objectives that guess regions.

The choice is made once per example, so that several objectives (features and classes) guess the same regions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.config import Config
from vlp.data.image import mean_feature
from vlp.data.index import Block
from vlp.objectives.itm import other_sample
from vlp.objectives.objective import Hidden
from vlp.objectives.words import choose
from vlp.types import Example, Loan, RegionInput

_SPARE = 2
"""Features that an example is lent to stand in for hidden ones, each 13 us to read. As published, 0.5 of 36 regions get
one; where more are wanted (once in 60 examples), one stands in twice."""


class RegionHidingConfig(Config):
    """How regions are hidden."""

    probability: float = Field(0.15, gt=0, le=1)
    """Chance of each region to be a target."""
    at_least_one: bool = True
    """Whether one region of each image is a target in any case (Chen et al. 2020, arXiv 1909.11740, 3.1)."""
    zero: float = Field(1.0, ge=0, le=1)
    """Share of the targets whose feature is replaced by zeros, and marked by a model with a mask embedding
    (`image.parts`: `feature.hidden`)."""
    random: float = Field(0.0, ge=0, le=1)
    """Share of the targets whose feature is replaced by that of a region of another image of the block, drawn by (seed,
    epoch, example), as in Tan and Bansal 2019 (arXiv 1908.07490). In a block of one image by zeros. What is neither
    zeroed nor replaced keeps its feature and is guessed all the same."""
    overlap: float = Field(1.0, gt=0, le=1)
    """Regions that overlap a target by more than this (intersection over union) are zeroed and marked along, without
    being targets, so that the target does not show through them. 1.0 hides none; 0.4 as in Lu et al. 2019 (arXiv
    1908.02265)."""
    whole_without: Literal["guessed", "hidden"] = "guessed"
    """What the feature of the whole image (`image.source.whole`) is no mean over: `guessed` leaves out all targets and
    all that is hidden (Lu et al.), `hidden` what is hidden, but not targets that keep their feature (Su et al. 2020,
    arXiv 1908.08530)."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.zero + self.random == 0:
            raise ValueError("zero and random are 0, so nothing would be hidden")
        if self.zero + self.random > 1 + 1e-6:
            raise ValueError(f"zero and random are {self.zero + self.random:g} together, they should be at most 1")
        return self


def hide_regions(
    example: Example, config: RegionHidingConfig, rng: np.random.Generator, lent_KD: NDArray[np.float32] | None = None
) -> Hidden:
    """Hide some regions of an example in place: their features are written over, since to copy all would cost more than
    all else that is done here.

    Examples without regions stay as they are.

    Args:
        lent_KD: features of regions of other images.
    """
    image = example.regions
    if image is None or len(image) == 0:
        return Hidden(example, None)
    chosen_K = _chosen(np.arange(int(image.whole), len(image)), config, rng)
    guessed_R = _at(chosen_K, image)
    draw_K = rng.random(len(chosen_K))
    random_K = chosen_K[(draw_K >= config.zero) & (draw_K < config.zero + config.random)]
    zero_R = _at(chosen_K[draw_K < config.zero], image)
    if lent_KD is None or not len(lent_KD):
        zero_R[random_K] = True
        random_K = random_K[:0]
    if config.overlap < 1:
        overlap_KR = overlaps(image.boxes_R4[chosen_K], image.boxes_R4)
        zero_R |= (overlap_KR > config.overlap).any(axis=0) & ~guessed_R
    zero_R[: int(image.whole)] = False
    covered_R = zero_R.copy()
    covered_R[random_K] = True
    unseen_R = zero_R | guessed_R if config.whole_without == "guessed" else covered_R.copy()
    covered_R[: int(image.whole)] = True
    features_RD, covered_C = image.features_RD, np.flatnonzero(covered_R)
    before_CD = features_RD[covered_C]
    features_RD[zero_R] = 0
    if len(random_K):
        assert lent_KD is not None
        features_RD[random_K] = lent_KD[_picked(len(lent_KD), len(random_K), rng)]
    if image.whole:  # what is hidden must not show through the mean, nor what only looks as if it were seen
        features_RD[0] = mean_feature(features_RD[1:], ~unseen_R[1:])
    image = replace(image, hidden_R=zero_R)
    example.set_regions(image)
    return Hidden(example, image, covered_C, before_CD, guessed_R=guessed_R, lent_KD=lent_KD)


def _picked(number: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many of a number of things, each once if there are enough. Numpy's own `choice` takes five times as long."""
    if wanted > number:
        return rng.integers(number, size=wanted)
    return rng.permutation(number)[:wanted]


def _chosen(places_R: NDArray[np.int64], config: RegionHidingConfig, rng: np.random.Generator) -> NDArray[np.int64]:
    if config.at_least_one:
        return choose(places_R, config.probability, rng)
    return places_R[rng.random(len(places_R)) < config.probability]


def _at(places_K: NDArray[np.int64], image: RegionInput) -> NDArray[np.bool_]:
    """True at these places, [R]."""
    there_R = np.zeros(len(image), np.bool_)
    there_R[places_K] = True
    return there_R


def spare_regions(sample: int, block: Block, config: RegionHidingConfig, rng: np.random.Generator) -> tuple[Loan, ...]:
    """Regions of other samples, one of each, that may stand in for hidden ones of this."""
    if not config.random:
        return ()
    lenders = lending_samples(sample, block, _SPARE, rng)
    return tuple(Loan(lender, int(rng.integers(block.regions_S[lender])), 1) for lender in lenders)


def lending_samples(sample: int, block: Block, number: int, rng: np.random.Generator) -> list[int]:
    """Other samples of the block with regions, so many at most."""
    drawn = [other_sample(sample, block, rng) for _ in range(number)]
    return [lender for lender in drawn if lender is not None and block.regions_S[lender]]


def overlaps(boxes_K4: NDArray[np.float32], others_R4: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of each box with each other one, [K, R]."""
    low_KR2 = np.maximum(boxes_K4[:, None, :2], others_R4[:, :2])
    sides_KR2 = np.maximum(np.minimum(boxes_K4[:, None, 2:], others_R4[:, 2:]) - low_KR2, 0)
    shared_KR = sides_KR2[..., 0] * sides_KR2[..., 1]
    area_K, area_R = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (boxes_K4, others_R4))
    result_KR: NDArray[np.float32] = shared_KR / np.maximum(area_K[:, None] + area_R - shared_KR, np.float32(1e-9))
    return result_KR


def hidden_positions(hidden: Hidden) -> NDArray[np.int64]:
    """The places of the example's image that are targets."""
    return np.zeros(0, np.int64) if hidden.guessed_R is None else np.flatnonzero(hidden.guessed_R)
