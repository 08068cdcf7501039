"""Masked region feature regression: guess the feature of a hidden region. Source: Chen et al. 2020 (arXiv 1909.11740),
section 3.1 (MRFR); Tan and Bansal 2019 (arXiv 1908.07490), section 3.1.2 (RoI-feature regression).

Shape suffixes: K hidden regions, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vlp.data.batch import WEIGHT
from vlp.errors import ConfigError
from vlp.models.heads import FeatureHead, HeadConfig
from vlp.models.image import RegionSource
from vlp.objectives.objective import (
    Facts,
    Hidden,
    SelfSupervised,
    SelfSupervisedConfig,
    cosine,
    empty_positions,
    precise,
)
from vlp.seeds import Draw, Draws
from vlp.types import Asked, Rows, Target, Targets


class RegionFeatureConfig(SelfSupervisedConfig):
    """Settings of region feature regression."""

    kind: Literal["region_feature"] = "region_feature"
    distance: Literal["mse", "smooth_l1"] = "mse"
    """Per number: squared difference, or SmoothL1 with beta 1; averaged over the feature's numbers."""
    average: Literal["targets", "regions"] = "targets"
    """What the loss is a mean over: the hidden regions, or all regions of the images that are guessed in, hidden or not
    (Tan and Bansal 2019, in their code, where `weight` then is 1 / 0.15)."""
    tied: bool = False
    """Project by the transpose of the image embedding's feature projection instead of a weight of its own."""
    inner_of: str | None = None
    """The objective whose head's inner layers this one's uses, instead of having its own."""


class RegionFeature(SelfSupervised):
    """Distance of the guessed to the true feature."""

    rows: Rows = "image"
    hides = "image"
    asks_features = True

    def __init__(self, name: str, config: RegionFeatureConfig, facts: Facts) -> None:
        super().__init__(name)
        self.config = config
        self.width = region_width(name, facts)

    def head(self) -> HeadConfig:
        return FeatureHead(width=self.width, tied=self.config.tied, inner_of=self.config.inner_of)

    def empty(self) -> Target:
        return Target(empty_positions(), {WEIGHT: np.zeros(0, np.float32)} if self._over_regions else {})

    @property
    def _over_regions(self) -> bool:
        return self.config.average == "regions"

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        return self.targets([hidden], Draws([rng.key])).one()

    def targets(self, hidden: Sequence[Hidden], draws: Draws) -> Asked:
        guessed = [each.guessed_K for each in hidden]
        asked = Asked(np.array([len(guessed_K) for guessed_K in guessed]), np.concatenate(guessed), {})
        if self._over_regions:
            images = [each.example.regions for each in hidden]
            asked.values[WEIGHT] = np.array(
                [len(image) - image.whole for image in images if image is not None], np.float32
            )
        return asked

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        feature_KD = targets.values["feature"]
        metrics = {f"{self.name}_cosine": cosine(scores_K, feature_KD)}
        return self.distances(scores_K, feature_KD).sum() / self.width, metrics

    def distances(self, scores_KD: Tensor, features_KD: Tensor) -> Tensor:
        """Distance of each number, [K, D]."""
        distance = F.mse_loss if self.config.distance == "mse" else F.smooth_l1_loss
        return distance(precise(scores_KD), features_KD, reduction="none")


def region_width(name: str, facts: Facts) -> int:
    """Width of a region's feature.

    Raises:
        ConfigError: the model reads pixels, so there are no regions to guess.
    """
    source = facts.model.image.source
    if not isinstance(source, RegionSource):
        raise ConfigError(f"task.objectives.{name}: guesses regions, but model.image.source reads pixels; remove it")
    assert isinstance(source.width, int)
    return source.width
