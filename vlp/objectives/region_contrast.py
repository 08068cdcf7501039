"""Region contrast: tell the feature of a hidden region from those of other regions. Source: Lu et al. 2019
(arXiv 1908.02265), in their code (noise-contrastive estimation, Gutmann and Hyvarinen 2010).

Shape suffixes: K hidden regions, E examples with any, S features that regions are told from, Q negatives of a region,
D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vlp.data.batch import asked_of
from vlp.data.image import float32
from vlp.data.index import Block
from vlp.data.packing import starts_of
from vlp.models.heads import FeatureHead, HeadConfig
from vlp.objectives.choice import parts
from vlp.objectives.objective import Facts, Hidden, SelfSupervised, SelfSupervisedConfig, empty_positions, precise
from vlp.objectives.region_feature import region_width
from vlp.objectives.regions import lending_samples
from vlp.seeds import Draw, Draws
from vlp.types import Asked, Loan, Rows, Target, Targets

_NONE = -1
"""Number of a negative that is not there."""


class RegionContrastConfig(SelfSupervisedConfig):
    """Settings of region contrast."""

    kind: Literal["region_contrast"] = "region_contrast"
    negatives: int = Field(255, ge=1)
    """Features that each hidden region's is told from; 255 as published."""
    across: float = Field(0.7, ge=0, le=1)
    """Share of them that are of other images; the rest are of its own."""
    images: int = Field(4, ge=1)
    """Other images of the block, drawn by (seed, epoch, example), whose regions they are; each is read along."""
    tied: bool = False
    """Project by the transpose of the image embedding's feature projection instead of a weight of its own."""
    inner_of: str | None = None
    """The objective whose head's inner layers this one's uses, instead of having its own."""


class RegionContrast(SelfSupervised):
    """Cross entropy of the true feature among others, by their products with the guessed one."""

    rows: Rows = "image"
    hides = "image"

    def __init__(self, name: str, config: RegionContrastConfig, facts: Facts) -> None:
        super().__init__(name)
        self.config = config
        self.width = region_width(name, facts)

    def head(self) -> HeadConfig:
        return FeatureHead(width=self.width, tied=self.config.tied, inner_of=self.config.inner_of)

    def loans(self, sample: int, block: Block, rng: Draw) -> tuple[Loan, ...]:
        """All regions of some other samples."""
        lenders = lending_samples(sample, block, self.config.images, rng)
        return tuple(Loan(lender, 0, regions) for lender, regions, _ in lenders)

    def empty(self) -> Target:
        values: dict[str, NDArray[Any]] = {
            "candidate": np.zeros((0, 1 + self.config.negatives), np.int64),
            "feature": np.zeros((0, self.width), np.float32),
            "features": np.zeros(0, np.int64),
            "regions": np.zeros(0, np.int64),
        }
        return Target(empty_positions(), values)

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        return self.targets([hidden], Draws([rng.key])).one()

    def targets(self, hidden: Sequence[Hidden], draws: Draws) -> Asked:
        """`candidate` [K, 1 + Q]: rows of the example's features, the true one first; `feature` [S, D]: those, its own
        regions' and then the lent ones; `features`, `regions` [1]: how many of both the example has."""
        counts = [len(each.guessed_K) * self.config.negatives for each in hidden]
        drawn = parts(draws.uniform(counts), starts_of(counts))
        return asked_of([self._target(each, draw_N) for each, draw_N in zip(hidden, drawn, strict=True)], self.empty())

    def _target(self, hidden: Hidden, draw_N: NDArray[np.float64]) -> Target:
        image, places_K = hidden.example.regions, hidden.guessed_K
        if image is None or not len(places_K):
            return self.empty()
        whole = int(image.whole)
        own_RD, lent = image.features_RD[whole:], [] if hidden.lent_KD is None else [float32(hidden.lent_KD)]
        features_SD = np.concatenate([own_RD, *lent])
        draw_KQ = draw_N.reshape(len(places_K), self.config.negatives)
        values: dict[str, NDArray[Any]] = {
            "candidate": self._candidates(places_K - whole, len(own_RD), len(features_SD), draw_KQ),
            "feature": features_SD,
            "features": np.full(1, len(features_SD), np.int64),
            "regions": np.full(1, len(places_K), np.int64),
        }
        return Target(places_K, values)

    def _candidates(
        self, true_K: NDArray[np.int64], own: int, every: int, draw_KQ: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """The true one and the negatives of each hidden region; where one kind is lacking, the other fills in."""
        lent, others = every - own, own - 1
        wanted = int(self.config.negatives * self.config.across) if others else self.config.negatives
        across = wanted if lent else 0
        across_KQ = own + (draw_KQ[:, :across] * lent).astype(np.int64)
        inside_KQ = np.full((len(true_K), self.config.negatives - across), _NONE)
        if others:
            drawn_KQ = (draw_KQ[:, across:] * others).astype(np.int64)
            inside_KQ = drawn_KQ + (drawn_KQ >= true_K[:, None])
        return np.concatenate([true_K[:, None], across_KQ, inside_KQ], axis=1)

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        candidate_KQ, features_E = targets.values["candidate"], targets.values["features"]
        # Rows are counted inside an example; here all examples' features lie one after the other.
        starts_E = features_E.cumsum(0) - features_E
        # With the size given, a GPU need not tell how long the result is.
        starts_K = starts_E.repeat_interleave(targets.values["regions"], output_size=len(candidate_KQ))
        rows_KQ = torch.where(candidate_KQ == _NONE, _NONE, candidate_KQ + starts_K[:, None])
        products_KQ = products(scores_K, targets.values["feature"], rows_KQ)
        right = (products_KQ.detach().argmax(1) == 0).sum()
        return contrast(products_KQ).sum(), {f"{self.name}_accuracy": (right, float(len(products_KQ)))}


def products(scores_KD: Tensor, features_SD: Tensor, rows_KQ: Tensor) -> Tensor:
    """The products of each guessed feature with some of the features, [K, Q]; below all numbers where a row is -1."""
    if not len(features_SD):
        return precise(scores_KD).sum(1, keepdim=True).expand(rows_KQ.shape)
    products_KS = precise(scores_KD) @ features_SD.T
    return products_KS.gather(1, rows_KQ.clamp_min(0)).masked_fill(rows_KQ == _NONE, float("-inf"))


def contrast(products_KQ: Tensor) -> Tensor:
    """Cross entropy of the first of each row, the true one, among the others, [K]."""
    first_K = torch.zeros(len(products_KQ), dtype=torch.int64, device=products_KQ.device)
    return F.cross_entropy(products_KQ, first_K, reduction="none")
