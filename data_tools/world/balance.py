"""Keeps answers balanced: which of several things that could be asked is asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np


class Guess(NamedTuple):
    """An answer that could be guessed from words alone, if it were more frequent than the others."""

    given: str
    """What the guesser knows: the form of a question, its words, the rest of a caption."""
    answer: str
    answers: tuple[str, ...]
    """All answers there could be; they shall be equally frequent for each `given`."""


class Candidate(NamedTuple):
    """A text that is true of a scene."""

    form: str
    text: str
    answer: str
    """Empty for a caption."""
    guesses: tuple[Guess, ...]


class Balance:
    """Counts what was asked, and refuses what would tip it: answers to the same words differ by `slack` at most.

    Symmetry alone balances a world only in the mean: of 100 questions "what colour is the circle ?" 20 might be
    answered "red" by chance, and a model that never looks could learn it. Without `slack` nothing is refused, only
    preferred.
    """

    def __init__(self, slack: float = inf) -> None:
        self.slack = slack
        self._counts: dict[str, dict[str, int]] = defaultdict(dict)

    def choose(self, candidates: Sequence[Candidate], rng: np.random.Generator) -> Candidate | None:
        """One of the candidates with the rarest answers (ties drawn), counted; None if each would tip the balance."""
        excesses = [[self._excess(guess) for guess in candidate.guesses] for candidate in candidates]
        fair = [i for i, excess in enumerate(excesses) if max(excess) < self.slack]
        if not fair:
            return None
        least = min(sum(excesses[i]) for i in fair)
        rarest = [i for i in fair if sum(excesses[i]) == least]
        chosen = candidates[rarest[rng.integers(len(rarest))]]
        for guess in chosen.guesses:
            counts = self._counts[guess.given]
            counts[guess.answer] = counts.get(guess.answer, 0) + 1
        return chosen

    def _excess(self, guess: Guess) -> int:
        """How far the answer is ahead of the rarest one."""
        counts = self._counts.get(guess.given)
        if not counts:
            return 0
        rarest = min(counts.values()) if len(counts) == len(guess.answers) else 0
        return counts.get(guess.answer, 0) - rarest
