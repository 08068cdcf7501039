"""Masked language modelling: hide words, guess them. Source: Devlin et al. 2019 (arXiv 1810.04805), section 3.1.

Shape suffixes: T tokens of a text, K hidden tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from vlp.models.heads import HeadConfig, VocabularyHead
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
from vlp.types import Rows, Target, Targets


class MaskedLanguageConfig(SelfSupervisedConfig):
    """Settings of masked language modelling; defaults are BERT's."""

    kind: Literal["masked_language"] = "masked_language"
    probability: float = Field(0.15, gt=0, le=1)
    """Chance of each token to be a target; at least one per text is."""
    mask: float = Field(0.8, ge=0, le=1)
    """Share of the targets that [MASK] stands for."""
    random: float = Field(0.1, ge=0, le=1)
    """Share of the targets that a random token stands for; the rest is kept."""
    average: Average = "targets"
    """What the loss is a mean over."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.mask + self.random > 1 + 1e-6:
            raise ValueError(f"mask and random are {self.mask + self.random:g} together, they should be at most 1")
        return self


class MaskedLanguage(SelfSupervised):
    """Cross entropy of the hidden tokens."""

    rows: Rows = "text"

    def __init__(self, name: str, config: MaskedLanguageConfig, facts: Facts) -> None:
        super().__init__(name)
        self.config = config
        self.mask_id = facts.text.mask_id
        self.random_ids = facts.text.random_ids

    def head(self) -> HeadConfig:
        return VocabularyHead()

    def empty(self) -> Target:
        return Target(empty_positions(), {"token": np.zeros(0, np.int64), **shares(self.config.average, 0)})

    def target(self, hidden: Hidden, rng: np.random.Generator) -> Target:
        example = hidden.example
        chosen_K = choose(np.flatnonzero(~example.special_T), self.config.probability, rng)
        made = mask_tokens(hidden, chosen_K, self.config, self.mask_id, self.random_ids, rng)
        return Target(made.positions, made.values | shares(self.config.average, len(made.positions)))

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        labels_K = targets.values["token"]
        loss_K = F.cross_entropy(precise(scores_K), labels_K, reduction="none")
        return averaged(loss_K, targets, self.config.average), {f"{self.name}_accuracy": accuracy(scores_K, labels_K)}


def choose(candidates: NDArray[np.int64], probability: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Each candidate with the given probability; at least one of them, if there is any."""
    chosen = candidates[rng.random(len(candidates)) < probability]
    if len(chosen) == 0 and len(candidates):
        chosen = candidates[rng.integers(len(candidates), size=1)]
    return chosen


def mask_tokens(
    hidden: Hidden,
    chosen_K: NDArray[np.int64],
    config: MaskedLanguageConfig,
    mask_id: int,
    random_ids: NDArray[np.int64],
    rng: np.random.Generator,
) -> Target:
    """Hide the chosen tokens in the example, and say what they were."""
    tokens_T = hidden.example.token_ids_T
    labels_K = tokens_T[chosen_K]
    draw_K = rng.random(len(chosen_K))
    replaced_K = np.where(draw_K < config.mask + config.random, rng.choice(random_ids, len(chosen_K)), labels_K)
    tokens_T = tokens_T.copy()
    tokens_T[chosen_K] = np.where(draw_K < config.mask, mask_id, replaced_K)
    hidden.example.token_ids_T = tokens_T
    return Target(chosen_K, {"token": labels_K})
