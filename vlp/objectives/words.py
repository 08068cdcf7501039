"""Which tokens of a text are hidden: single ones, whole words, or spans of words.

A unit is what is hidden as one thing: all of its tokens are targets, and one draw decides whether [MASK], random tokens
or its own stand there. Special tokens belong to no unit.

Shape suffixes: B texts, N tokens of all of them, T tokens of one, F those that may be hidden, K those that are chosen,
W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlp.data.packing import starts_of
from vlp.objectives.choice import NEVER, choose_each, counts_of
from vlp.seeds import Draw, Draws


class Chosen(NamedTuple):
    """What is hidden of some texts, whose N tokens lie one after the other."""

    chosen_N: NDArray[np.bool_]
    """True at the tokens."""
    unit_K: NDArray[np.int64]
    """The unit that each of these belongs to, counted from 0 over all texts."""
    units_B: NDArray[np.int64]
    """Units of each text."""


def choose_tokens(specials: Sequence[NDArray[np.bool_]], probability: float, draws: Draws) -> Chosen:
    """Of each text each token with the given probability, at least one."""
    counts = [len(special_T) for special_T in specials]
    starts_B1, draw_N = starts_of(counts), draws.uniform(counts)
    draw_N[np.concatenate(specials)] = NEVER
    chosen_N = choose_each(draw_N, starts_B1, probability)
    units_B = counts_of(chosen_N.nonzero()[0].searchsorted(starts_B1))
    return Chosen(chosen_N, np.arange(units_B.sum()), units_B)


def choose_words(
    specials: Sequence[NDArray[np.bool_]], words: Sequence[NDArray[np.int64]], probability: float, draws: Draws
) -> Chosen:
    """Of each text each word with the given probability, at least one, with all of its tokens.

    Args:
        words: number of each token's word; a token without one (-1) that is not special is a word by itself.
    """
    text_N = np.arange(len(specials)).repeat([len(special_T) for special_T in specials])
    free_N, word_N = ~np.concatenate(specials), np.concatenate(words)
    begins_N = _begins(word_N, text_N, free_N)
    counts_B = np.bincount(text_N[begins_N], minlength=len(specials))
    starts_B1 = starts_of(counts_B)
    taken_W = choose_each(draws.uniform(counts_B), starts_B1, probability)
    number_N = begins_N.cumsum() - 1
    chosen_N = free_N.copy()
    chosen_N[free_N] = taken_W[number_N[free_N]]
    unit_K = (taken_W.cumsum() - 1)[number_N[chosen_N]]
    return Chosen(chosen_N, unit_K, counts_of(taken_W.nonzero()[0].searchsorted(starts_B1)))


def _begins(word_N: NDArray[np.int64], text_N: NDArray[np.int64], free_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a word begins, of the tokens that may be hidden."""
    word_F, text_F = word_N[free_N], text_N[free_N]
    begins_F = np.ones(len(word_F), np.bool_)
    begins_F[1:] = (word_F[1:] != word_F[:-1]) | (word_F[1:] < 0) | (text_F[1:] != text_F[:-1])
    begins_N: NDArray[np.bool_] = free_N.copy()
    begins_N[free_N] = begins_F
    return begins_N


def choose_spans(
    specials: Sequence[NDArray[np.bool_]],
    words: Sequence[NDArray[np.int64]],
    probability: float,
    draws: Draws,
    *,
    end: float,
    longest: int,
) -> Chosen:
    """Spans of words until the given share of each text's tokens is chosen; the last span is cut at it.

    A share that is no whole number of tokens is rounded up or down by chance, so that it is kept on average; at least
    one token is chosen. Source: Joshi et al. 2020 (arXiv 1907.10529), section 3.1.

    Args:
        end: chance of a span to end after each of its words (parameter of the geometric distribution).
        longest: most words of a span.
    """
    found = [
        _spans(special_T, word_T, probability, rng, end, longest)
        for special_T, word_T, rng in zip(specials, words, draws, strict=True)
    ]
    units_B = np.array([span_T.max(initial=-1) + 1 for span_T in found])
    span_N = np.concatenate(found)
    first_N = (units_B.cumsum() - units_B).repeat([len(span_T) for span_T in found])
    chosen_N = span_N >= 0
    return Chosen(chosen_N, (span_N + first_N)[chosen_N], units_B)


def _spans(
    special_T: NDArray[np.bool_], word_T: NDArray[np.int64], probability: float, rng: Draw, end: float, longest: int
) -> NDArray[np.int64]:
    """The span that each token belongs to, -1 for none, [T]."""
    span_T = np.full(len(special_T), -1)
    places_F = (~special_T).nonzero()[0]
    tokens = len(places_F)
    if not tokens:
        return span_T
    word_F = _begins(word_T, np.zeros_like(word_T), ~special_T)[places_F].cumsum() - 1
    budget = min(tokens, max(1, int(tokens * probability + rng.random())))
    span_F = np.full(tokens, -1)
    spans = 0
    while budget:
        left_L = (span_F < 0).nonzero()[0]
        first_word = word_F[left_L[rng.integers(len(left_L))]]
        last_word = first_word + 1
        while last_word - first_word < longest and rng.random() >= end:
            last_word += 1
        first, last = word_F.searchsorted((first_word, last_word))
        row_K = np.arange(first, last)
        row_K = row_K[span_F[row_K] < 0][:budget]
        span_F[row_K] = spans
        spans += 1
        budget -= len(row_K)
    span_T[places_F] = span_F
    return span_T
