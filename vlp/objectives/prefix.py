"""Prefix language modelling: guess the words of a text from the image and the words before them, as a caption is
written. Sources: Dong et al. 2019 (arXiv 1905.03197), section 2.3; Zhou et al. 2020 (arXiv 1909.11059), section 3.2.

Shape suffixes: T tokens of a text, K tokens that are guessed, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from vlp.errors import ConfigError
from vlp.models.imageparts import ImagePositionConfig
from vlp.models.model import ModelConfig
from vlp.objectives.choice import choose
from vlp.objectives.mlm import MaskingConfig, mask_tokens
from vlp.objectives.objective import Facts, Hidden
from vlp.objectives.vocabulary import WordGuessing
from vlp.types import Example, Target


class PrefixLanguageConfig(MaskingConfig):
    """Settings of prefix language modelling."""

    kind: Literal["prefix_language"] = "prefix_language"
    guess: Literal["next", "masked"] = "next"
    """Every token of the text from the one before it; or hidden ones from what stands in their place, as in masked
    language modelling (both sources), where the end of the text may be hidden too, so that its place is learned."""


class PrefixLanguage(WordGuessing):
    """Cross entropy of the tokens. The text's words see the image and the words before them, the image sees itself."""

    def __init__(self, name: str, config: PrefixLanguageConfig, facts: Facts) -> None:
        super().__init__(name, facts)
        self.config = config
        self.text = facts.text
        _check(name, facts.model)

    def target(self, hidden: Hidden, rng: np.random.Generator) -> Target:
        example = hidden.example
        example.causal = True
        guessed_T = ~example.special_T
        guessed_T[-1] = True  # the end is guessed too; [CLS] never, it begins every text
        if self.config.guess == "next":
            places_K = np.flatnonzero(guessed_T)
            return Target(places_K - 1, {"token": example.token_ids_T[places_K]})
        places_K = np.flatnonzero(guessed_T)
        chosen_K = places_K[choose(rng.random(len(places_K)), self.config.probability)]
        chosen = [(chosen_K, np.arange(len(chosen_K)))]
        return mask_tokens([hidden], chosen, self.config, self.text.mask_id, self.text.random_ids, [rng])[0]

    def asking(self, example: Example) -> Example:
        """The example as it is shown to learn what comes next: its one target is the token behind the last."""
        masked = [self.text.mask_id] if self.config.guess == "masked" else []
        tokens_T = np.array([*example.token_ids_T, *masked], np.int64)
        last = np.array([len(tokens_T) - 1], np.int64)
        target = Target(last, {"token": np.zeros(1, np.int64)})
        return Example(
            example.id,
            tokens_T,
            np.zeros(len(tokens_T), np.bool_),
            np.zeros(len(tokens_T), np.int64),
            example.image,
            targets={self.name: target},
            causal=True,
        )


def _check(name: str, model: ModelConfig) -> None:
    """Refuse a model whose image tokens would tell how long the text is."""
    parts = (*model.image.parts, *(model.image.grid.parts if model.image.grid else ()))
    if any(isinstance(part, ImagePositionConfig) and part.at == "after_text" for part in parts):
        raise ConfigError(
            f"task.objectives.{name}: guesses a text from left to right, but the image's places stand behind the text "
            "and would tell its length; take another `at` than after_text for model.image's position"
        )
