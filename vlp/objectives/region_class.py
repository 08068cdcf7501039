"""Region classification: guess what the detector saw in a region, by its class probabilities or by its first choice.
Sources: Chen et al. 2020 (arXiv 1909.11740), section 3.1 (MRC and MRC-kl); Lu et al. 2019 (arXiv 1908.02265); Tan and
Bansal 2019 (arXiv 1908.07490), section 3.1.2 (objects and attributes); Su et al. 2020 (arXiv 1908.08530).

Shape suffixes: K regions that are guessed, R regions of an image, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from vlp.data.image import float32
from vlp.errors import ConfigError
from vlp.models.heads import ClassHead, HeadConfig
from vlp.models.image import RegionSource
from vlp.objectives.choice import parts, rows_of
from vlp.objectives.objective import (
    Average,
    Facts,
    Hidden,
    SelfSupervised,
    SelfSupervisedConfig,
    accuracy,
    averaged,
    empty_positions,
    precise,
    shares,
)
from vlp.objectives.region_feature import region_width
from vlp.seeds import Draw, Draws
from vlp.types import RegionInput, Rows, Target, Targets

NO_CLASS = -1
"""Label of a region that has none; it adds nothing to loss and accuracy."""


class RegionClassConfig(SelfSupervisedConfig):
    """Settings of region classification."""

    kind: Literal["region_class"] = "region_class"
    of: Literal["class", "attribute"] = "class"
    """What is guessed."""
    labels: Literal["soft", "hard"] = "soft"
    """The detector's probabilities, or its first choice."""
    loss: Literal["kl", "cross_entropy"] = "kl"
    """With soft labels: divergence of the guess from them, or cross entropy. Hard labels take cross entropy."""
    background: bool = False
    """Whether class 0 is background, which is never taken for a hard label."""
    over: Literal["hidden", "all"] = "hidden"
    """Guess hidden regions, or all of them."""
    by_confidence: bool = False
    """Weigh a region by how sure the detector is of it."""
    mean_over_classes: bool = False
    """Divide the divergence by the number of classes, as the code of Chen et al. does; their formula has none."""
    average: Average = "targets"
    """What the loss is a mean over."""
    inner_norm: bool = True
    """Whether the head's inner layers end in a LayerNorm."""
    inner_of: str | None = None
    """The objective whose head's inner layers this one's uses, instead of having its own."""

    @model_validator(mode="after")
    def _attributes_are_numbers(self) -> Self:
        if self.of == "attribute" and self.labels == "soft":
            raise ValueError("of: attribute needs labels: hard, since no detector's attribute probabilities are kept")
        return self


class RegionClass(SelfSupervised):
    """Cross entropy with, or divergence from, what the detector saw."""

    rows: Rows = "image"
    hides = "image"

    def __init__(self, name: str, config: RegionClassConfig, facts: Facts) -> None:
        super().__init__(name)
        self.config = config
        region_width(name, facts)
        source = facts.model.image.source
        assert isinstance(source, RegionSource)
        classes = source.classes if config.of == "class" else source.attributes
        if classes is None:
            what, key = ("class probabilities", "class_probs") if config.of == "class" else ("attributes", "attributes")
            raise ConfigError(
                f"task.objectives.{name}: needs {what} of the regions, and the shards of data.train hold "
                f"none (no <key>.{key}.npy); remove the objective or import regions with them"
            )
        assert isinstance(classes, int)
        self.classes = classes

    def head(self) -> HeadConfig:
        norm: Literal["last", "none"] = "last" if self.config.inner_norm else "none"
        return ClassHead(reads="image", classes=self.classes, inner="same", norm=norm, inner_of=self.config.inner_of)

    def empty(self) -> Target:
        hard = self.config.labels == "hard"
        return self._target(
            empty_positions(),
            np.zeros(0, np.int64) if hard else np.zeros((0, self.classes), np.float32),
            np.zeros(0, np.float32),
        )

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        return self.targets([hidden], Draws([rng.key]))[0]

    def targets(self, hidden: Sequence[Hidden], draws: Draws) -> list[Target]:
        made, every = [self.empty()] * len(hidden), self.config.over == "all"
        images = [each.example.regions for each in hidden]
        asked = [(row, image) for row, image in enumerate(images) if image and self._labelled(image)]
        places = [np.arange(int(image.whole), len(image)) if every else hidden[row].guessed_K for row, image in asked]
        labels = self._labels([image for _, image in asked], places)
        for (row, image), places_K, label_K in zip(asked, places, labels, strict=True):
            made[row] = self._target(places_K, label_K, self._confidence(image, places_K))
        return made

    def _target(
        self, places_K: NDArray[np.int64], label_K: NDArray[np.generic], confidence_K: NDArray[np.float32] | None
    ) -> Target:
        values = {"class" if self.config.labels == "hard" else "probability": label_K}
        if confidence_K is not None and self.config.by_confidence:
            values["confidence"] = confidence_K
        if self.config.average != "targets":
            values |= shares(self.config.average, len(places_K))
        return Target(places_K, values)

    def _labelled(self, image: RegionInput) -> bool:
        return self._numbers(image) is not None or (self.config.of == "class" and image.class_probs_RC is not None)

    def _numbers(self, image: RegionInput) -> NDArray[np.int64] | None:
        """The class of each region of an image, where the shards say it and hard labels are asked for."""
        if self.config.labels == "soft":
            return None
        return image.attributes_R if self.config.of == "attribute" else image.classes_R

    def _labels(
        self, images: Sequence[RegionInput], places: Sequence[NDArray[np.int64]]
    ) -> Sequence[NDArray[np.generic]]:
        """Classes, or the detector's probabilities, of some regions of each image."""
        if self.config.labels == "soft":
            return self._probabilities(images, places)
        return [self._classes(image, places_K) for image, places_K in zip(images, places, strict=True)]

    def _probabilities(
        self, images: Sequence[RegionInput], places: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        """They lie in one piece, as the batch wants them."""
        if not images:
            return []
        arrays = [image.class_probs_RC for image in images if image.class_probs_RC is not None]
        found_NC, starts_B1 = rows_of(arrays, places)
        # Detectors store half floats: rows sum to 1 within 4e-4, which a divergence would count as error.
        probability_NC = float32(found_NC)
        probability_NC /= np.maximum(probability_NC.sum(axis=1, keepdims=True), 1e-6)
        return parts(probability_NC, starts_B1)

    def _classes(self, image: RegionInput, places_K: NDArray[np.int64]) -> NDArray[np.int64]:
        known_R = self._numbers(image)
        if known_R is not None:
            return known_R.take(places_K)
        assert image.class_probs_RC is not None
        first = int(self.config.background)
        chosen_K: NDArray[np.int64] = image.class_probs_RC[places_K, first:].argmax(axis=1) + first
        return chosen_K

    def _confidence(self, image: RegionInput, places_K: NDArray[np.int64]) -> NDArray[np.float32] | None:
        if not self.config.by_confidence:
            return None
        own_R = image.attribute_confidence_R if self.config.of == "attribute" else image.confidence_R
        return np.ones(len(places_K), np.float32) if own_R is None else own_R.take(places_K)

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        if self.config.labels == "hard":
            labels_K = targets.values["class"]
            loss_K = F.cross_entropy(precise(scores_K), labels_K, reduction="none", ignore_index=NO_CLASS)
        else:
            labels_K = targets.values["probability"].argmax(-1)
            loss_K = self.divergences(scores_K, targets.values["probability"]).sum(1)
            loss_K = loss_K / (self.classes if self.config.mean_over_classes else 1)
        if self.config.by_confidence:
            loss_K = loss_K * targets.values["confidence"]
        metrics = {f"{self.name}_accuracy": (accuracy(scores_K, labels_K)[0], (labels_K != NO_CLASS).sum())}
        return averaged(loss_K, targets, self.config.average), metrics

    def divergences(self, scores_KC: Tensor, probability_KC: Tensor) -> Tensor:
        """The part of each class in the loss with soft labels, [K, C]."""
        guess_KC = precise(scores_KC).log_softmax(-1)
        if self.config.loss == "cross_entropy":
            return -probability_KC * guess_KC
        return F.kl_div(guess_KC, probability_KC, reduction="none")
