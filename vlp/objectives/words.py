"""Which tokens of a text are hidden: single ones, whole words, or spans of words.

A unit is what is hidden as one thing: all of its tokens are targets, and one draw decides whether [MASK], random tokens
or its own stand there. Special tokens belong to no unit.

Shape suffixes: T tokens of a text, K tokens that are chosen, U units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlp.objectives.choice import NEVER, choose_each, parts, places_in_each, starts_of
from vlp.seeds import Draw, Draws

Chosen = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Places of the chosen tokens, [K], and the number of the unit that each belongs to, [K], from 0 to U - 1."""


def choose_tokens(specials: Sequence[NDArray[np.bool_]], probability: float, draws: Draws) -> list[Chosen]:
    """Of each text each token with the given probability, at least one."""
    counts = [len(special_T) for special_T in specials]
    starts_B1, draw_N = starts_of(counts), draws.uniform(counts)
    draw_N[np.concatenate(specials)] = NEVER
    chosen = places_in_each(choose_each(draw_N, starts_B1, probability), starts_B1)
    return [(chosen_K, np.arange(len(chosen_K))) for chosen_K in chosen]


def choose_words(
    specials: Sequence[NDArray[np.bool_]], words: Sequence[NDArray[np.int64]], probability: float, draws: Draws
) -> list[Chosen]:
    """Of each text each word with the given probability, at least one, with all of its tokens.

    Args:
        words: number of each token's word; a token without one (-1) that is not special is a word by itself.
    """
    texts = [_words(special_T, word_T) for special_T, word_T in zip(specials, words, strict=True)]
    counts = [words_K[-1] + 1 if len(words_K) else 0 for _, words_K in texts]
    starts_B1 = starts_of(counts)
    taken_N = choose_each(draws.uniform(counts), starts_B1, probability)
    chosen = []
    for (places_K, words_K), taken_U in zip(texts, parts(taken_N, starts_B1), strict=True):
        taken_K = taken_U[words_K]
        chosen.append((places_K[taken_K], (np.cumsum(taken_U) - 1)[words_K[taken_K]]))
    return chosen


def choose_spans(
    specials: Sequence[NDArray[np.bool_]],
    words: Sequence[NDArray[np.int64]],
    probability: float,
    draws: Draws,
    *,
    end: float,
    longest: int,
) -> list[Chosen]:
    """Spans of words until the given share of each text's tokens is chosen; the last span is cut at it.

    A share that is no whole number of tokens is rounded up or down by chance, so that it is kept on average; at least
    one token is chosen. Source: Joshi et al. 2020 (arXiv 1907.10529), section 3.1.

    Args:
        end: chance of a span to end after each of its words (parameter of the geometric distribution).
        longest: most words of a span.
    """
    return [
        _spans(*_words(special_T, word_T), probability, rng, end, longest)
        for special_T, word_T, rng in zip(specials, words, draws, strict=True)
    ]


def _spans(
    places_K: NDArray[np.int64],
    words_K: NDArray[np.int64],
    probability: float,
    rng: Draw,
    end: float,
    longest: int,
) -> Chosen:
    tokens = len(places_K)
    if not tokens:
        return places_K, words_K
    budget = min(tokens, max(1, int(tokens * probability + rng.random())))
    span_K = np.full(tokens, -1)
    spans = 0
    while budget:
        free_K = np.flatnonzero(span_K < 0)
        anchor = free_K[rng.integers(len(free_K))]
        first = int(np.searchsorted(words_K, words_K[anchor]))
        last = words_K[anchor] + 1
        while last - words_K[anchor] < longest and rng.random() >= end:
            last += 1
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
