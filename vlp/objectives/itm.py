"""Image-text matching: tell whether image and text belong together. Source: Chen et al. 2020 (arXiv 1909.11740),
section 3.1 (ITM); Tan and Bansal 2019 (arXiv 1908.07490), section 3.1.3.

The negative is drawn before anything is read (`mismatch`), from the example's own block, so that its length is known
when a step is planned and no other shard is opened.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vlp.data.index import Block
from vlp.models.heads import ClassHead, HeadConfig
from vlp.objectives.objective import (
    Facts,
    Hidden,
    SelfSupervised,
    SelfSupervisedConfig,
    accuracy,
    empty_positions,
    precise,
)
from vlp.types import Pair, Rows, Target, Targets


class MatchingConfig(SelfSupervisedConfig):
    """Settings of image-text matching."""

    kind: Literal["matching"] = "matching"
    replace: Literal["image", "text"] = "image"
    """What is replaced in a mismatched pair."""
    probability: float = Field(0.5, gt=0, lt=1)
    """Chance of a pair to be mismatched."""
    matched_label: Literal[0, 1] = 1
    """The label of a matched pair; the other one is a mismatched pair's."""


class Matching(SelfSupervised):
    """Two-way cross entropy."""

    rows: Rows = "example"
    pairs = "all"

    def __init__(self, name: str, config: MatchingConfig, facts: Facts) -> None:
        super().__init__(name)
        self.config = config

    def mismatch(self, example: int, block: Block, rng: np.random.Generator) -> Pair:
        """The pair of an example, mismatched by chance. A block without another sample gives matched pairs only, and so
        does a text without an image."""
        sample = int(block.sample_E[example])
        if not (block.has_image_S[sample] or block.regions_S[sample]) or rng.random() >= self.config.probability:
            return Pair(sample, example)
        if self.config.replace == "image":
            image = other_sample(sample, block, rng)
            return Pair(sample, example) if image is None else Pair(image, example, matched=False)
        text = other_text(sample, block, rng)
        return Pair(sample, example) if text is None else Pair(sample, text, matched=False)

    def head(self) -> HeadConfig:
        return ClassHead(reads="example", classes=2)

    def empty(self) -> Target:
        return Target(empty_positions(), {"matched": np.zeros(0, np.int64)})

    def target(self, hidden: Hidden, rng: np.random.Generator) -> Target:
        return Target(np.zeros(1, np.int64), {"matched": np.array([hidden.example.matched], np.int64)})

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        matched_K = targets.values["matched"]
        labels_K = matched_K if self.config.matched_label == 1 else 1 - matched_K
        total = F.cross_entropy(precise(scores_K), labels_K, reduction="sum")
        return total, {f"{self.name}_accuracy": accuracy(scores_K, labels_K)}


def other_sample(sample: int, block: Block, rng: np.random.Generator) -> int | None:
    """Another sample of the block, uniformly; None if it holds no other."""
    others = len(block.shard_S) - 1
    if others < 1:
        return None
    drawn = int(rng.integers(others))
    return drawn + (drawn >= sample)


def other_text(sample: int, block: Block, rng: np.random.Generator) -> int | None:
    """A text of another sample of the block, uniformly over texts; None if no other sample has one."""
    candidates = np.flatnonzero(block.sample_E != sample)
    return int(rng.choice(candidates)) if len(candidates) else None
