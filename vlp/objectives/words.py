"""Which tokens of a text are hidden: single ones, whole words, or spans of words.

A unit is what is hidden as one thing: all of its tokens are targets, and one draw decides whether [MASK], random tokens
or its own stand there. Special tokens belong to no unit.

Shape suffixes: T tokens of a text, K tokens that are chosen, U units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlp.objectives.choice import NEVER, choose, choose_each, places_in_each, starts_of

Chosen = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Places of the chosen tokens, [K], and the number of the unit that each belongs to, [K], from 0 to U - 1."""


def choose_tokens(
    specials: Sequence[NDArray[np.bool_]], probability: float, rngs: Sequence[np.random.Generator]
) -> list[Chosen]:
    """Of each text each token with the given probability, at least one; each text by its own generator."""
    starts_B1 = starts_of([len(special_T) for special_T in specials])
    draw_N = np.concatenate([rng.random(len(special_T)) for special_T, rng in zip(specials, rngs, strict=True)])
    draw_N[np.concatenate(specials)] = NEVER
    chosen = places_in_each(choose_each(draw_N, starts_B1, probability), starts_B1)
    return [(chosen_K, np.arange(len(chosen_K))) for chosen_K in chosen]


def choose_words(
    special_T: NDArray[np.bool_], word_T: NDArray[np.int64], probability: float, rng: np.random.Generator
) -> Chosen:
    """Each word with the given probability, at least one, with all of its tokens.

    Args:
        word_T: number of each token's word; a token without one (-1) that is not special is a word by itself.
    """
    places_K, words_K = _words(special_T, word_T)
    chosen_U = choose(rng.random(words_K[-1] + 1 if len(words_K) else 0), probability)
    taken_U = np.zeros(len(chosen_U) and words_K[-1] + 1, np.bool_)
    taken_U[chosen_U] = True
    taken_K = taken_U[words_K]
    return places_K[taken_K], (np.cumsum(taken_U) - 1)[words_K[taken_K]]


def choose_spans(
    special_T: NDArray[np.bool_],
    word_T: NDArray[np.int64],
    probability: float,
    rng: np.random.Generator,
    *,
    end: float,
    longest: int,
) -> Chosen:
    """Spans of words until the given share of the text's tokens is chosen; the last span is cut at it.

    A share that is no whole number of tokens is rounded up or down by chance, so that it is kept on average; at least
    one token is chosen. Source: Joshi et al. 2020 (arXiv 1907.10529), section 3.1.

    Args:
        end: chance of a span to end after each of its words (parameter of the geometric distribution).
        longest: most words of a span.
    """
    places_K, words_K = _words(special_T, word_T)
    tokens = len(places_K)
    if not tokens:
        return places_K, words_K
    budget = min(tokens, max(1, int(np.floor(tokens * probability + rng.random()))))
    span_K = np.full(tokens, -1)
    spans = 0
    while budget:
        anchor = rng.choice(np.flatnonzero(span_K < 0))
        first = int(np.searchsorted(words_K, words_K[anchor]))
        last = words_K[anchor] + min(int(rng.geometric(end)), longest)
        row_K = np.arange(first, int(np.searchsorted(words_K, last)))
        row_K = row_K[span_K[row_K] < 0][:budget]
        span_K[row_K] = spans
        spans += 1
        budget -= len(row_K)
    taken_K = span_K >= 0
    return places_K[taken_K], span_K[taken_K]


def _words(special_T: NDArray[np.bool_], word_T: NDArray[np.int64]) -> Chosen:
    """The tokens that may be hidden, and the number of each one's word, counted from 0 in the order of the text."""
    places_K = np.flatnonzero(~special_T)
    word_K = word_T[places_K]
    new_K = np.ones(len(places_K), np.bool_)
    new_K[1:] = (word_K[1:] != word_K[:-1]) | (word_K[1:] < 0)
    return places_K, np.cumsum(new_K) - 1
