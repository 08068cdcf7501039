"""Masked region classification with soft labels: guess what the detector saw in a hidden region, by its class
probabilities. Source: Chen et al. 2020 (arXiv 1909.11740), section 3.1 (MRC-kl); Lu et al. 2019 (arXiv 1908.02265).

Shape suffixes: K hidden regions, C classes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from vlp.errors import ConfigError
from vlp.models.heads import ClassHead, HeadConfig
from vlp.models.image import RegionSource
from vlp.objectives.objective import Facts, Hidden, SelfSupervised, SelfSupervisedConfig, accuracy, empty_positions
from vlp.objectives.region_feature import region_width
from vlp.objectives.regions import hidden_positions
from vlp.types import Rows, Target, Targets


class RegionClassConfig(SelfSupervisedConfig):
    """Settings of soft region classification."""

    kind: Literal["region_class"] = "region_class"
    mean_over_classes: bool = False
    """Divide the divergence by the number of classes, as the code of Chen et al. does; their formula has none."""


class RegionClass(SelfSupervised):
    """Kullback-Leibler divergence of the guessed from the detector's class distribution."""

    rows: Rows = "image"

    def __init__(self, name: str, config: RegionClassConfig, facts: Facts) -> None:
        super().__init__(name)
        self.config = config
        region_width(name, facts)
        source = facts.model.image.source
        assert isinstance(source, RegionSource)
        if source.classes is None:
            raise ConfigError(
                f"task.objectives.{name}: needs class probabilities of the regions, and the shards of data.train hold "
                "none (no <key>.class_probs.npy); remove the objective or import regions with their classes"
            )
        assert isinstance(source.classes, int)
        self.classes = source.classes

    def head(self) -> HeadConfig:
        return ClassHead(reads="image", classes=self.classes, inner="same")

    def empty(self) -> Target:
        return Target(empty_positions(), {"probability": np.zeros((0, self.classes), np.float32)})

    def target(self, hidden: Hidden, rng: np.random.Generator) -> Target:
        places_K = hidden_positions(hidden)
        if hidden.original is None or hidden.original.class_probs_RC is None:
            return self.empty()
        probability_KC = hidden.original.class_probs_RC[places_K].astype(np.float32)
        # Detectors store half floats: rows sum to 1 within 4e-4, which a divergence would count as error.
        probability_KC /= np.maximum(probability_KC.sum(axis=1, keepdims=True), 1e-6)
        return Target(places_K, {"probability": probability_KC})

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        probability_KC = targets.values["probability"]
        divergence = F.kl_div(scores_K.float().log_softmax(-1), probability_KC, reduction="sum")
        metrics = {f"{self.name}_accuracy": accuracy(scores_K, probability_KC.argmax(-1))}
        return divergence / (self.classes if self.config.mean_over_classes else 1), metrics
