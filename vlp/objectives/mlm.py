"""Masked language modelling: hide words, guess them. Sources: Devlin et al. 2019 (arXiv 1810.04805), section 3.1; with
a momentum model's guesses among the targets, Li et al. 2021 (arXiv 2107.07651), section 3.3.

Shape suffixes: B texts, N tokens of all of them, T tokens of one, K hidden tokens of all; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.data.packing import starts_of
from vlp.objectives.choice import counts_of, parts, places_in_each
from vlp.objectives.objective import Average, Facts, Hidden, SelfSupervisedConfig, shares
from vlp.objectives.vocabulary import WordGuessing
from vlp.objectives.words import Chosen, choose_spans, choose_tokens, choose_words
from vlp.seeds import Draw, Draws
from vlp.types import Asked, Example, Target

_SPAN_END, _SPAN_LONGEST = 0.2, 10


class MaskingConfig(SelfSupervisedConfig):
    """How many words are targets, and what stands in their place; defaults are BERT's."""

    probability: float = Field(0.15, gt=0, le=1)
    """Chance of each token (or word) to be a target, of spans the share of the tokens; at least one per text is."""
    mask: float = Field(0.8, ge=0, le=1)
    """Share of the targets that [MASK] stands for."""
    random: float = Field(0.1, ge=0, le=1)
    """Share of the targets that a random token stands for; the rest is kept."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.mask + self.random > 1 + 1e-6:
            raise ValueError(f"mask and random are {self.mask + self.random:g} together, they should be at most 1")
        return self


class MaskedLanguageConfig(MaskingConfig):
    """Settings of masked language modelling."""

    kind: Literal["masked_language"] = "masked_language"
    unit: Literal["token", "word", "span"] = "token"
    """What is hidden as one thing: a token; a word with all of its tokens (whole-word masking); a span of words (Joshi
    et al. 2020, arXiv 1907.10529). [MASK], random or kept is drawn once for it."""
    span_end: float = Field(_SPAN_END, gt=0, le=1)
    """Spans: chance to end after each word; lengths are geometric. 0.2 as in Joshi et al."""
    span_longest: int = Field(_SPAN_LONGEST, ge=1)
    """Spans: most words. 10 as in Joshi et al., for a mean of 3.8 words."""
    average: Average = "targets"
    """What the loss is a mean over."""
    alpha: float = Field(0.0, ge=0, le=1)
    """The share of the targets that is what a momentum model guesses of the same hidden words; 0.4 in Li et al. 2021.
    It needs an objective of kind contrast with `momentum` in the same step, and follows its `ramp`. Evaluation takes
    the true words alone."""

    @model_validator(mode="after")
    def _spans(self) -> Self:
        if self.unit != "span" and (self.span_end, self.span_longest) != (_SPAN_END, _SPAN_LONGEST):
            raise ValueError(f"span_end and span_longest are of spans, and unit is {self.unit}; say unit: span")
        return self


class MaskedLanguage(WordGuessing):
    """Cross entropy of the hidden tokens."""

    def __init__(self, name: str, config: MaskedLanguageConfig, facts: Facts) -> None:
        super().__init__(name, facts, config.average)
        self.config = config
        self.mask_id = facts.text.mask_id
        self.random_ids = facts.text.random_ids

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        return self.targets([hidden], Draws([rng.key])).one()

    def targets(self, hidden: Sequence[Hidden], draws: Draws) -> Asked:
        chosen = chosen_words([each.example for each in hidden], self.config, draws)
        asked = mask_tokens(hidden, chosen, self.config, self.mask_id, self.random_ids, draws)
        asked.values |= shares(self.average, asked.counts_B)
        return asked


def chosen_words(examples: Sequence[Example], config: MaskedLanguageConfig, draws: Draws) -> Chosen:
    """The tokens of each example to hide, by the config's unit."""
    specials, words = [example.special_T for example in examples], [example.word_T for example in examples]
    if config.unit == "token":
        return choose_tokens(specials, config.probability, draws)
    if config.unit == "word":
        return choose_words(specials, words, config.probability, draws)
    return choose_spans(specials, words, config.probability, draws, end=config.span_end, longest=config.span_longest)


def mask_tokens(
    hidden: Sequence[Hidden],
    chosen: Chosen,
    config: MaskingConfig,
    mask_id: int,
    random_ids: NDArray[np.int64],
    draws: Draws,
) -> Asked:
    """Hide the chosen tokens in each example, a unit by one draw, and ask what they were."""
    starts_B1 = starts_of([len(each.example.token_ids_T) for each in hidden])
    positions_K, bounds_B1 = places_in_each(chosen.chosen_N, starts_B1)
    counts_B = counts_of(bounds_B1)
    places_K = positions_K + starts_B1[:-1].repeat(counts_B)
    tokens_N = np.concatenate([each.example.token_ids_T for each in hidden])
    labels_K = tokens_N[places_K]
    # What becomes of a unit, and which random token would stand at each place.
    fate_K = draws.apart("fate").uniform(chosen.units_B)[chosen.unit_K]
    which_K = draws.apart("which").uniform(counts_B)
    random_K = (fate_K >= config.mask) & (fate_K < config.mask + config.random)
    tokens_N[places_K[fate_K < config.mask]] = mask_id
    tokens_N[places_K[random_K]] = random_ids[(which_K[random_K] * len(random_ids)).astype(np.int64)]
    for each, tokens_T in zip(hidden, parts(tokens_N, starts_B1), strict=True):
        each.example.token_ids_T = tokens_T
    return Asked(counts_B, positions_K, {"token": labels_K})
