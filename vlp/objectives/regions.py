"""Hiding regions: which ones, and what stands in their place. Shared by all objectives that guess regions.

The choice is made once per example, so that several objectives (features and classes) guess the same regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.config import Config
from vlp.data.image import float32, mean_without
from vlp.data.index import Block
from vlp.objectives.choice import choose_each, places_in_each, starts_of
from vlp.objectives.objective import Hidden
from vlp.types import Loan

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


def choose_regions(hidden: Sequence[Hidden], config: RegionHidingConfig, rngs: Sequence[np.random.Generator]) -> None:
    """Choose regions of each example to be guessed and hidden, each by its own generator; none where it has no regions.

    They stay as they are until `hide_regions`, so that objectives can ask for what stands there.
    """
    if not hidden:
        return
    # The whole image is not counted among the N regions of all examples, since it is never chosen.
    images = [each.example.regions for each in hidden]
    whole = [int(image is not None and image.whole) for image in images]
    counts = [0 if image is None else len(image) - first for image, first in zip(images, whole, strict=True)]
    starts_B1 = starts_of(counts)
    draws = [rng.random((2, count)) for rng, count in zip(rngs, counts, strict=True)]
    draw_N, fate_N = np.concatenate(draws, axis=1)  # whether a region is a target, and what becomes of it
    guessed_N = choose_each(draw_N, starts_B1, config.probability, config.at_least_one)
    lends = [each.lent_KD is not None and len(each.lent_KD) > 0 for each in hidden]
    zero_N = np.where(lends, config.zero, config.zero + config.random).repeat(counts)
    zeroed_N = guessed_N & (fate_N < zero_N)
    replaced_N = guessed_N & (fate_N >= zero_N) & (fate_N < config.zero + config.random)
    if config.overlap < 1:
        boxes = [image.boxes_R4[first:] for image, first in zip(images, whole, strict=True) if image is not None]
        boxes_N4 = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
        zeroed_N |= overlapped(boxes_N4, guessed_N, starts_B1, config.overlap) & ~guessed_N
    chosen = [places_in_each(chosen_N, starts_B1) for chosen_N in (guessed_N, zeroed_N, replaced_N)]
    for each, first, guessed_K, zeroed_C, replaced_C in zip(hidden, whole, *chosen, strict=True):
        for places_K in (guessed_K, zeroed_C, replaced_C) if first else ():
            places_K += first
        each.guessed_K, each.zeroed_C, each.replaced_C = guessed_K, zeroed_C, replaced_C


def hide_regions(hidden: Hidden, config: RegionHidingConfig, rng: np.random.Generator) -> None:
    """Hide the regions that were chosen, in place: to copy all features would cost more than all else that is done
    here."""
    image, zeroed_C, replaced_C = hidden.example.regions, hidden.zeroed_C, hidden.replaced_C
    if image is None or not len(image):
        return
    image.hidden_R = np.zeros(len(image), np.bool_)
    image.hidden_R[zeroed_C] = True
    if image.whole:  # what is hidden must not show through the mean, nor what only looks as if it were seen
        unseen_R = image.hidden_R.copy()
        unseen_R[hidden.guessed_K if config.whole_without == "guessed" else replaced_C] = True
        image.features_RD[0] = mean_without(image.features_RD[1:], unseen_R[1:], image.features_RD[0])
    image.features_RD[zeroed_C] = 0
    if len(replaced_C):
        assert hidden.lent_KD is not None
        image.features_RD[replaced_C] = float32(hidden.lent_KD[_picked(len(hidden.lent_KD), len(replaced_C), rng)])


def _picked(number: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many of a number of things, each once if there are enough. Numpy's own `choice` takes five times as long."""
    if wanted > number:
        return rng.integers(number, size=wanted)
    return rng.permutation(number)[:wanted]


def spare_regions(sample: int, block: Block, config: RegionHidingConfig, rng: np.random.Generator) -> tuple[Loan, ...]:
    """Regions of other samples, one of each, that may stand in for hidden ones of this."""
    if not config.random:
        return ()
    lenders = lending_samples(sample, block, _SPARE, rng)
    places = rng.random(len(lenders)).tolist()
    return tuple(
        Loan(lender, int(place * regions), 1) for (lender, regions), place in zip(lenders, places, strict=True)
    )


def lending_samples(sample: int, block: Block, number: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Other samples of the block with regions, so many at most, and how many regions each has."""
    others = len(block.regions_S) - 1
    drawn = rng.integers(others, size=number).tolist() if others else []
    lenders = [other + (other >= sample) for other in drawn]
    return [(lender, regions) for lender in lenders if (regions := block.regions_S.item(lender))]


def overlapped(
    boxes_N4: NDArray[np.float32], some_N: NDArray[np.bool_], starts_B1: NDArray[np.int64], share: float
) -> NDArray[np.bool_]:
    """Where a box's intersection with one of some boxes of its image is more than this share of their union, [N].

    Args:
        boxes_N4: of all images, one after the other.
        starts_B1: where each image's begin, and the end.
    """
    some_K = some_N.nonzero()[0]
    counts_B = np.diff(starts_B1)
    image_K = np.arange(len(counts_B)).repeat(counts_B)[some_K]
    # Each of some boxes with each of its image, P pairs.
    counts_K = counts_B[image_K]
    ends_K = counts_K.cumsum()
    other_P = np.arange(counts_K.sum()) + (starts_B1[image_K] - ends_K + counts_K).repeat(counts_K)
    boxes_4N = np.ascontiguousarray(boxes_N4.T)
    area_N = (boxes_4N[2] - boxes_4N[0]) * (boxes_4N[3] - boxes_4N[1])
    (x1_P, y1_P, x2_P, y2_P), own_4P = boxes_4N[:, other_P], boxes_4N[:, some_K].repeat(counts_K, axis=1)
    width_P = np.minimum(x2_P, own_4P[2]) - np.maximum(x1_P, own_4P[0])
    height_P = np.minimum(y2_P, own_4P[3]) - np.maximum(y1_P, own_4P[1])
    shared_P = np.maximum(width_P, 0) * np.maximum(height_P, 0)
    # shared > share * union, where the union is both areas without what they share.
    more_P = shared_P * (1 + 1 / share) > area_N[other_P] + area_N[some_K].repeat(counts_K)
    found_N = np.zeros(len(boxes_N4), np.bool_)
    found_N[other_P[more_P]] = True
    return found_N
