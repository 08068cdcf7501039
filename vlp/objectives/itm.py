"""Image-text matching: tell whether image and text belong together. Sources: Chen et al. 2020 (arXiv 1909.11740),
section 3.1 (ITM); Tan and Bansal 2019 (arXiv 1908.07490), section 3.1.3; with two texts, Li et al. 2019 (arXiv
1908.03557), section 3.3.

A negative is drawn before anything is read (`mismatch`), from the example's own block, so that its length is known
when a step is planned and no other shard is opened. Or it is a hard one, found among the global batch by what contrast
makes of it (`vlp.objectives.negatives`): then each example gives three pairs. Source: Li et al. 2021 (arXiv
2107.07651), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from vlp.data.index import Block
from vlp.errors import ConfigError
from vlp.models.heads import ClassHead, HeadConfig
from vlp.models.text import TextConfig
from vlp.objectives.objective import (
    Facts,
    Hidden,
    SelfSupervised,
    SelfSupervisedConfig,
    accuracy,
    empty_positions,
    precise,
)
from vlp.seeds import Draw, Draws
from vlp.types import Asked, Encoded, Pair, Rows, Target, Targets

REMATCHED = "rematched.pooled"
"""The tap that holds the pooled vectors of pairs that a first pass over the global batch has found."""
HARD_PAIRS = 3
"""Pairs of an example with hard negatives: the matched one, its image with another text, its text with another image;
its loss is their mean."""


class MatchingConfig(SelfSupervisedConfig):
    """Settings of image-text matching."""

    kind: Literal["matching"] = "matching"
    negatives: Literal["block", "hard"] = "block"
    """Where mismatched pairs come from: the example's block, by chance; or the global batch, two for each matched pair,
    its image with a text and its text with an image that contrast takes to be like its own. `hard` needs an objective
    of kind contrast, and holds for training: evaluation draws from the block. An image is given to at most two texts;
    `batch.micro_tokens` counts all pairs that can come of an example."""
    replace: Literal["image", "text", "either", "second_text"] = "image"
    """What is replaced in a mismatched pair: its image, its text, or either of them at random. `second_text`: two texts
    stand one after the other; the first is the image's, the second another of the image's texts or, mismatched, one of
    another image. An image with a single text then has nothing to be told."""
    probability: float = Field(0.5, ge=0, le=1)
    """Chance of a pair to be mismatched."""
    matched_label: Literal[0, 1] = 1
    """The label of a matched pair; the other one is a mismatched pair's."""

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if self.negatives == "hard" and self.replace == "second_text":
            raise ValueError("negatives: hard replaces the image or the one text; take replace: second_text back")
        return self


class Matching(SelfSupervised):
    """Two-way cross entropy."""

    rows: Rows = "example"
    pairs = "all"

    def __init__(self, name: str, config: MatchingConfig, facts: Facts) -> None:
        super().__init__(name)
        self.config = config
        if config.replace == "second_text":
            check_second_text(name, facts.model.text)

    def mismatch(self, example: int, block: Block, rng: Draw) -> Pair:
        """The pair of an example, mismatched by chance. A block without another sample gives matched pairs only, and so
        does a text without an image."""
        sample = block.sample_E.item(example)
        mismatched = rng.random() < self.config.probability
        if not has_image(sample, block):
            return Pair(sample, example)
        if self.config.replace == "second_text":
            return self._with_second(Pair(sample, example), block, mismatched, rng)
        if not mismatched:
            return Pair(sample, example)
        if self.config.replace == "image" or (self.config.replace == "either" and rng.random() < 0.5):
            image = other_sample(sample, block, rng)
            return Pair(sample, example) if image is None else Pair(image, example, matched=False)
        text = other_text(sample, block, rng)
        return Pair(sample, example) if text is None else Pair(sample, text, matched=False)

    def _with_second(self, pair: Pair, block: Block, mismatched: bool, rng: Draw) -> Pair:
        """The pair with a second text, if its image has one: were others mismatched, one text would tell a match."""
        first, end = texts_of(pair.image, block)
        if end - first < 2:
            return pair
        other = other_text(pair.image, block, rng) if mismatched else None
        if other is not None:
            return pair._replace(second=other, matched=False)
        own = first + rng.integers(end - first - 1)
        return pair._replace(second=own + (own >= pair.text))

    def head(self) -> HeadConfig:
        return ClassHead(reads="example", classes=2)

    def empty(self) -> Target:
        return Target(empty_positions(), {"matched": np.zeros(0, np.int64)})

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        return self.targets([hidden], Draws([rng.key])).one()

    def targets(self, hidden: Sequence[Hidden], draws: Draws) -> Asked:
        always = self.config.replace != "second_text"
        counts_B = np.array([always or each.example.segment_T is not None for each in hidden], np.int64)
        matched_B = np.array([each.example.matched for each in hidden], np.int64)
        return Asked(counts_B, np.zeros(counts_B.sum(), np.int64), {"matched": matched_B[counts_B > 0]})

    def scores(self, head: nn.Module | None, encoded: Encoded, targets: Targets) -> Tensor:
        if "matched" not in targets.survey:
            return super().scores(head, encoded, targets)
        assert head is not None
        pooled_PH = torch.cat([encoded.pooled_BH, encoded.taps[REMATCHED]])
        return head(pooled_PH.index_select(0, targets.survey["rows"]))  # type: ignore[no-any-return]

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        hard = "matched" in targets.survey
        matched_K = (targets.survey if hard else targets.values)["matched"]
        labels_K = matched_K if self.config.matched_label == 1 else 1 - matched_K
        total = F.cross_entropy(precise(scores_K), labels_K, reduction="sum") / (HARD_PAIRS if hard else 1)
        return total, {f"{self.name}_accuracy": accuracy(scores_K, labels_K)}


def has_image(sample: int, block: Block) -> bool:
    """Whether a sample of the block has an image, or regions of one."""
    return bool(block.has_image_S.item(sample) or block.regions_S.item(sample))


def other_sample(sample: int, block: Block, rng: Draw) -> int | None:
    """Another sample of the block, uniformly; None if it holds no other."""
    others = len(block.shard_S) - 1
    if others < 1:
        return None
    drawn = rng.integers(others)
    return drawn + (drawn >= sample)


def other_text(sample: int, block: Block, rng: Draw) -> int | None:
    """A text of another sample of the block, uniformly over texts; None if no other sample has one."""
    sample_E = block.sample_E
    if not len(sample_E) or sample_E.item(0) == sample == sample_E.item(-1):  # a sample's texts stand together
        return None
    while sample_E.item(text := rng.integers(len(sample_E))) == sample:
        pass
    return text


def texts_of(sample: int, block: Block) -> tuple[int, int]:
    """The first of a sample's texts in the block's example tables, and the end; they stand together."""
    # Of the table's own type: for another, numpy would convert the table at each call.
    bounds = np.array((sample, sample + 1), block.sample_E.dtype)
    first, end = block.sample_E.searchsorted(bounds).tolist()
    return first, end


def check_second_text(name: str, text: TextConfig) -> None:
    """Raises ConfigError if the model's segment table has no row for a second text."""
    for part in text.parts:
        if part.kind == "segment" and part.index + 1 >= part.rows:
            raise ConfigError(
                f"task.objectives.{name}.replace: second_text needs a segment of its own for the second text, and "
                f"model.text.parts has a segment table of {part.rows}; give it rows: {part.index + 2}"
            )
