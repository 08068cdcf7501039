"""Prefix language modelling: guess the words of a text from the image and the words before them, as a caption is
written. Sources: Dong et al. 2019 (arXiv 1905.03197), section 2.3; Zhou et al. 2020 (arXiv 1909.11059), section 3.2.

Shape suffixes: T tokens of a text, K tokens that are guessed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vlp.data.batch import asked_of
from vlp.errors import ConfigError
from vlp.models.imageparts import ImagePositionConfig
from vlp.models.model import ModelConfig
from vlp.objectives.mlm import MaskingConfig, mask_tokens
from vlp.objectives.objective import Facts, Hidden
from vlp.objectives.vocabulary import WordGuessing
from vlp.objectives.words import choose_tokens
from vlp.seeds import Draw, Draws
from vlp.types import Asked, Batch, Example, Stream, Target


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

    def reads(self, batch: Batch) -> dict[Stream, Tensor | None]:
        """All, as no row of a text that is read from left to right is worked out alone."""
        return {"text": None, "image": None}

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        return self.targets([hidden], Draws([rng.key])).one()

    def targets(self, hidden: Sequence[Hidden], draws: Draws) -> Asked:
        examples = [each.example for each in hidden]
        for example in examples:
            example.causal = True
        never = [_never(example.special_T) for example in examples]
        if self.config.guess == "next":
            each = [_next(example, ~never_T) for example, never_T in zip(examples, never, strict=True)]
            return asked_of(each, self.empty())
        chosen = choose_tokens(never, self.config.probability, draws)
        return mask_tokens(hidden, chosen, self.config, self.text.mask_id, self.text.random_ids, draws)

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


def _never(special_T: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """True at tokens that are never guessed. The end is; [CLS] is not, it begins every text."""
    never_T: NDArray[np.bool_] = special_T.copy()
    never_T[-1] = False
    return never_T


def _next(example: Example, guessed_T: NDArray[np.bool_]) -> Target:
    """Each of the tokens, guessed where the one before it stands."""
    places_K = np.flatnonzero(guessed_T)
    return Target(places_K - 1, {"token": example.token_ids_T[places_K]})


def _check(name: str, model: ModelConfig) -> None:
    """Refuse a model whose image tokens would tell how long the text is."""
    parts = (*model.image.parts, *(model.image.grid.parts if model.image.grid else ()))
    if any(isinstance(part, ImagePositionConfig) and part.at == "after_text" for part in parts):
        raise ConfigError(
            f"task.objectives.{name}: guesses a text from left to right, but the image's places stand behind the text "
            "and would tell its length; take another `at` than after_text for model.image's position"
        )
