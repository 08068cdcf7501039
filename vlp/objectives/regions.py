"""Hiding regions: which ones, and what stands in their place. Shared by all objectives that guess regions.

The choice is made once per example, so that several objectives (features and classes) guess the same regions.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.config import Config
from vlp.data.image import float32, mean_feature
from vlp.data.index import Block
from vlp.objectives.itm import other_sample
from vlp.objectives.objective import Hidden
from vlp.objectives.words import choose
from vlp.types import Example, Loan

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


def choose_regions(
    example: Example,
    config: RegionHidingConfig,
    rng: np.random.Generator,
    lent_KD: NDArray[np.floating[Any]] | None = None,
) -> Hidden:
    """Choose regions of an example to be guessed and hidden; none where it has no regions.

    They stay as they are until `hide_regions`, so that objectives can ask for what stands there.

    Args:
        lent_KD: features of regions of other images.
    """
    image = example.regions
    if image is None:
        return Hidden(example)
    whole = int(image.whole)
    draw_2R = rng.random((2, len(image) - whole))  # for each region: whether it is a target, and what becomes of it
    guessed_K = choose(draw_2R[0], config.probability, config.at_least_one)
    fate_K = draw_2R[1, guessed_K]
    guessed_K += whole
    hidden = config.zero + config.random
    if lent_KD is not None and not len(lent_KD):
        lent_KD = None
    zeroed = hidden if lent_KD is None else config.zero
    zeroed_C, replaced_C = guessed_K, guessed_K[:0]
    if zeroed < 1:
        zeroed_C, replaced_C = guessed_K[fate_K < zeroed], guessed_K[(fate_K >= zeroed) & (fate_K < hidden)]
    if config.overlap < 1:
        beside_R = overlapped(image.boxes_R4, guessed_K, config.overlap)
        beside_R[guessed_K] = False
        beside_R[:whole] = False
        zeroed_C = np.concatenate([zeroed_C, beside_R.nonzero()[0]])
    return Hidden(example, guessed_K, zeroed_C, replaced_C, lent_KD)


def hide_regions(hidden: Hidden, config: RegionHidingConfig, rng: np.random.Generator) -> None:
    """Hide the regions that were chosen, in place: to copy all features would cost more than all else that is done
    here."""
    image, zeroed_C, replaced_C = hidden.example.regions, hidden.zeroed_C, hidden.replaced_C
    if image is None or not len(image):
        return
    features_RD = image.features_RD
    features_RD[zeroed_C] = 0
    if len(replaced_C):
        assert hidden.lent_KD is not None
        features_RD[replaced_C] = float32(hidden.lent_KD[_picked(len(hidden.lent_KD), len(replaced_C), rng)])
    image.hidden_R = np.zeros(len(image), np.bool_)
    image.hidden_R[zeroed_C] = True
    if image.whole:  # what is hidden must not show through the mean, nor what only looks as if it were seen
        seen_R = ~image.hidden_R
        seen_R[hidden.guessed_K if config.whole_without == "guessed" else replaced_C] = False
        features_RD[0] = mean_feature(features_RD[1:], seen_R[1:])


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
    return tuple(Loan(lender, int(rng.integers(block.regions_S[lender])), 1) for lender in lenders)


def lending_samples(sample: int, block: Block, number: int, rng: np.random.Generator) -> list[int]:
    """Other samples of the block with regions, so many at most."""
    drawn = [other_sample(sample, block, rng) for _ in range(number)]
    return [lender for lender in drawn if lender is not None and block.regions_S[lender]]


def overlapped(boxes_R4: NDArray[np.float32], some_K: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Where a box's intersection with one of some boxes is more than this share of their union, [R]."""
    x1_R, y1_R, x2_R, y2_R = boxes_4R = np.ascontiguousarray(boxes_R4.T)
    x1_K1, y1_K1, x2_K1, y2_K1 = boxes_4R[:, some_K, None]
    width_KR = np.minimum(x2_R, x2_K1) - np.maximum(x1_R, x1_K1)
    height_KR = np.minimum(y2_R, y2_K1) - np.maximum(y1_R, y1_K1)
    shared_KR = np.maximum(width_KR, 0) * np.maximum(height_KR, 0)
    area_R = (x2_R - x1_R) * (y2_R - y1_R)
    # shared > share * union, with the union being both areas without what they share.
    found_R: NDArray[np.bool_] = (shared_KR * (1 + 1 / share) > area_R + area_R[some_K, None]).any(axis=0)
    return found_R
