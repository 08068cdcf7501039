"""Hiding regions: which ones, and what stands in their place. Shared by all objectives that guess regions.

The choice is made once per example, so that several objectives (features and classes) guess the same regions.

Shape suffixes: B examples, N regions of all of them (whole images included), R regions of one, K guessed ones, P
replaced ones, W whole images, S regions that one is the mean of, D feature width, L most regions of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.config import Config
from vlp.data.index import Block
from vlp.data.packing import starts_of
from vlp.objectives.choice import NEVER, choose_each, counts_of, parts, places_in_each
from vlp.objectives.objective import Hidden
from vlp.seeds import Draw, Draws
from vlp.types import Hiding, Loan

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


def hide_regions(hidden: Sequence[Hidden], config: RegionHidingConfig, draws: Draws) -> None:
    """Choose regions of each example to be guessed and hidden, and say what becomes of them; none where it has none.

    The features stay what they are: they are hidden in the batch (`vlp.types.Hidings`).
    """
    images = [each.example.regions for each in hidden]
    counts = [0 if image is None else len(image) for image in images]
    if not sum(counts):
        return
    starts_B1 = starts_of(counts)
    whole_W = starts_B1[[row for row, image in enumerate(images) if image is not None and image.whole]]
    draw_N = draws.apart("chosen").uniform(counts)
    draw_N[whole_W] = NEVER
    guessed_N = choose_each(draw_N, starts_B1, config.probability, config.at_least_one)
    places_K, bounds_B1 = places_in_each(guessed_N, starts_B1)
    guessed_B = counts_of(bounds_B1)
    guessed_K = places_K + starts_B1[:-1].repeat(guessed_B)
    fate_K = draws.apart("fate").uniform(guessed_B)
    lends = [each.lent_KD is not None and len(each.lent_KD) > 0 for each in hidden]
    zero_K = fate_K < np.where(lends, config.zero, config.zero + config.random).repeat(guessed_B)
    zeroed_N, replaced_N = np.zeros((2, len(draw_N)), np.bool_)
    zeroed_N[guessed_K[zero_K]] = True
    replaced_N[guessed_K[~zero_K & (fate_K < config.zero + config.random)]] = True
    if config.overlap < 1:
        boxes_N4 = np.concatenate([image.boxes_R4 for image in images if image is not None])
        along_N = overlapped(boxes_N4, guessed_N, starts_B1, config.overlap) & ~guessed_N
        along_N[whole_W] = False
        zeroed_N |= along_N
    guessed, zeroed = parts(places_K, bounds_B1), parts(zeroed_N, starts_B1)
    hidings = _replaced(hidden, parts(*places_in_each(replaced_N, starts_B1)), draws.apart("lent"))
    for each, image, own_K, zeroed_R, hiding in zip(hidden, images, guessed, zeroed, hidings, strict=True):
        if image is not None:
            each.guessed_K, image.hidden_R, image.hiding = own_K, zeroed_R, hiding
    if len(whole_W):
        # What is hidden must not show through the mean, nor what only looks as if it were seen.
        unseen_N = zeroed_N | (guessed_N if config.whole_without == "guessed" else replaced_N)
        unseen_N[whole_W] = True
        seen = parts(*places_in_each(~unseen_N, starts_B1))
        for image, hiding, seen_S in zip(images, hidings, seen, strict=True):
            if image is not None and image.whole:
                hiding.seen_S = seen_S


def _replaced(hidden: Sequence[Hidden], replaced: Sequence[NDArray[np.int64]], draws: Draws) -> list[Hiding]:
    """What stands in the place of the replaced regions of each example, of the features that it is lent: each once
    before one stands in twice."""
    hidings = [Hiding() for _ in hidden]
    rows = [row for row, replaced_P in enumerate(replaced) if len(replaced_P)]
    drawn = draws.of(np.array(rows, np.int64)).uniform([1] * len(rows)).tolist()
    for row, draw in zip(rows, drawn, strict=True):
        lent_KD, replaced_P = hidden[row].lent_KD, replaced[row]
        assert lent_KD is not None
        first = int(draw * len(lent_KD))  # one after the other from a random one on, and around
        hidings[row] = Hiding(replaced_P, lent_KD.take(range(first, first + len(replaced_P)), axis=0, mode="wrap"))
    return hidings


def spare_regions(sample: int, block: Block, config: RegionHidingConfig, rng: Draw) -> tuple[Loan, ...]:
    """Regions of other samples, one of each, that may stand in for hidden ones of this."""
    if not config.random:
        return ()
    lenders = lending_samples(sample, block, _SPARE, rng)
    return tuple([Loan(lender, int(place * regions), 1) for lender, regions, place in lenders])


def lending_samples(sample: int, block: Block, number: int, rng: Draw) -> list[tuple[int, int, float]]:
    """Other samples of the block with regions, so many at most; how many regions each has, and a number that is uniform
    in [0, 1) whichever it is."""
    others, found = len(block.regions_S) - 1, []
    for _ in range(number if others else 0):
        drawn = rng.random() * others
        other = int(drawn)
        lender = other + (other >= sample)
        if regions := block.regions_S.item(lender):
            found.append((lender, regions, drawn - other))
    return found


def overlapped(
    boxes_N4: NDArray[np.float32], some_N: NDArray[np.bool_], starts_B1: NDArray[np.int64], share: float
) -> NDArray[np.bool_]:
    """Where a box's intersection with one of some boxes of its image is more than this share of their union, [N].

    Args:
        boxes_N4: of all images, one after the other.
        starts_B1: where each image's begin, and the end.
    """
    counts_B = counts_of(starts_B1)
    longest = int(counts_B.max(initial=0))
    image_N = np.arange(len(counts_B)).repeat(counts_B)
    rows_N = np.arange(len(boxes_N4)) + (np.arange(len(counts_B)) * longest - starts_B1[:-1]).repeat(counts_B)
    # All of an image's boxes side by side, [4, B, longest]; padding has no area, so it overlaps nothing.
    boxes_4BL = np.zeros((4, len(counts_B), longest), np.float32)
    boxes_4BL.reshape(4, -1)[:, rows_N] = boxes_N4.T
    area_BL = (boxes_4BL[2] - boxes_4BL[0]) * (boxes_4BL[3] - boxes_4BL[1])
    # Each of some boxes, K, with each of its image.
    some_K = some_N.nonzero()[0]
    image_K = image_N[some_K]
    x1_KL, y1_KL, x2_KL, y2_KL = (numbers_BL.take(image_K, axis=0) for numbers_BL in boxes_4BL)
    x1_K1, y1_K1, x2_K1, y2_K1 = boxes_N4[some_K].T[:, :, None]
    width_KL = np.minimum(x2_KL, x2_K1) - np.maximum(x1_KL, x1_K1)
    height_KL = np.minimum(y2_KL, y2_K1) - np.maximum(y1_KL, y1_K1)
    shared_KL = np.maximum(width_KL, 0) * np.maximum(height_KL, 0)
    # shared > share * union, where the union is both areas without what they share.
    more_KL = shared_KL * (1 + 1 / share) > area_BL[image_K] + (x2_K1 - x1_K1) * (y2_K1 - y1_K1)
    found_BL = np.zeros(area_BL.shape, np.bool_)
    some_B = counts_of(some_K.searchsorted(starts_B1))
    firsts_I = (some_B.cumsum() - some_B)[some_B > 0]  # of each image that has some
    if len(firsts_I):
        found_BL[some_B > 0] = np.logical_or.reduceat(more_KL, firsts_I)
    found_N: NDArray[np.bool_] = found_BL.reshape(-1)[rows_N]
    return found_N
