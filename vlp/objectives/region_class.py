"""Region classification: guess what the detector saw in a region, by its class probabilities or by its first choice.
Sources: Chen et al. 2020 (arXiv 1909.11740), section 3.1 (MRC and MRC-kl); Lu et al. 2019 (arXiv 1908.02265); Tan and
Bansal 2019 (arXiv 1908.07490), section 3.1.2 (objects and attributes); Su et al. 2020 (arXiv 1908.08530).

Shape suffixes: K regions that are guessed, R regions of an image, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from vlp.data.batch import asked_of
from vlp.data.image import float32
from vlp.data.packing import starts_of
from vlp.errors import ConfigError
from vlp.models.heads import ClassHead, HeadConfig
from vlp.models.image import RegionSource
from vlp.objectives.choice import counts_of, parts, places_in_each
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
from vlp.types import Asked, Batch, RegionInput, Rows, Stream, Target, Targets

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

    def reads(self, batch: Batch) -> dict[Stream, Tensor | None]:
        return {"image": None} if self.config.over == "all" else super().reads(batch)

    def head(self) -> HeadConfig:
        norm: Literal["last", "none"] = "last" if self.config.inner_norm else "none"
        return ClassHead(reads="image", classes=self.classes, inner="same", norm=norm, inner_of=self.config.inner_of)

    def empty(self) -> Target:
        values: dict[str, NDArray[Any]] = dict(shares(self.config.average, np.zeros(1, np.int64)))
        if self.config.labels == "hard":
            values["class"] = np.zeros(0, np.int64)
        else:
            values["probability"] = np.zeros((0, self.classes), np.float32)
        if self.config.by_confidence:
            values["confidence"] = np.zeros(0, np.float32)
        return Target(empty_positions(), values)

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        return self.targets([hidden], Draws([rng.key])).one()

    def targets(self, hidden: Sequence[Hidden], draws: Draws) -> Asked:
        found = [(row, image) for row, each in enumerate(hidden) if (image := each.example.regions) is not None]
        labelled = [(row, image) for row, image in found if self._labelled(image)]
        if not labelled:
            return asked_of([None] * len(hidden), self.empty())
        rows, images = [row for row, _ in labelled], [image for _, image in labelled]
        starts_B1 = starts_of([len(image) for image in images])
        positions_K, bounds_B1 = self._positions([hidden[row] for row in rows], images, starts_B1)
        counts_B = counts_of(bounds_B1)
        rows_K = positions_K + starts_B1[:-1].repeat(counts_B)
        values: dict[str, NDArray[Any]] = dict(shares(self.config.average, counts_B))
        if self.config.labels == "hard":
            values["class"] = self._classes(images, rows_K, parts(positions_K, bounds_B1))
        else:
            values["probability"] = _probabilities(images, parts(positions_K, bounds_B1))
        if self.config.by_confidence:
            values["confidence"] = np.concatenate([self._confidence(image) for image in images])[rows_K]
        return Asked(counts_B, positions_K, values).among(np.array(rows), len(hidden))

    def _labelled(self, image: RegionInput) -> bool:
        return self._numbers(image) is not None or (self.config.of == "class" and image.class_probs_RC is not None)

    def _numbers(self, image: RegionInput) -> NDArray[np.int64] | None:
        """The class of each region, where the shards say it and hard labels are asked for."""
        if self.config.of == "attribute":
            return image.attributes_R
        return image.classes_R if self.config.labels == "hard" else None

    def _positions(
        self, hidden: Sequence[Hidden], images: Sequence[RegionInput], starts_B1: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The regions that are guessed, counted within each image, and where each image's begin, and the end."""
        if self.config.over == "hidden":
            guessed = [each.guessed_K for each in hidden]
            return np.concatenate(guessed), starts_of([len(guessed_K) for guessed_K in guessed])
        own_N = np.ones(starts_B1[-1], np.bool_)
        own_N[[start for start, image in zip(starts_B1.tolist(), images, strict=False) if image.whole]] = False
        return places_in_each(own_N, starts_B1)

    def _classes(
        self, images: Sequence[RegionInput], rows_K: NDArray[np.int64], positions: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """The classes of some regions of each image, which are those rows of all."""
        numbers = [array for image in images if (array := self._numbers(image)) is not None]
        if len(numbers) == len(images):
            return np.concatenate(numbers)[rows_K]
        return np.concatenate([self._class(image, places_K) for image, places_K in zip(images, positions, strict=True)])

    def _class(self, image: RegionInput, places_K: NDArray[np.int64]) -> NDArray[np.int64]:
        numbers_R = self._numbers(image)
        if numbers_R is not None:
            return numbers_R[places_K]
        assert image.class_probs_RC is not None
        first = int(self.config.background)
        chosen_K: NDArray[np.int64] = float32(image.class_probs_RC[places_K])[:, first:].argmax(axis=1) + first
        return chosen_K

    def _confidence(self, image: RegionInput) -> NDArray[np.float32]:
        own_R = image.attribute_confidence_R if self.config.of == "attribute" else image.confidence_R
        return np.ones(len(image), np.float32) if own_R is None else own_R

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


def _probabilities(images: Sequence[RegionInput], positions: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
    """The detector's probabilities of some regions of each image."""
    arrays = [image.class_probs_RC for image in images if image.class_probs_RC is not None]
    probability_KC = np.concatenate([float32(array[places]) for array, places in zip(arrays, positions, strict=True)])
    # Detectors store half floats: rows sum to 1 within 4e-4, which a divergence would count as error.
    probability_KC /= np.maximum(probability_KC.sum(axis=1, keepdims=True), 1e-6)
    return probability_KC
