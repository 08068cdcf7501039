"""Accuracy of answers as the VQA challenge counts it. Source: Antol et al. 2015 (arXiv 1505.00468), section 3, and the
rules for comparing answers that the challenge publishes (visualqa.org/evaluation)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from vlp.metrics.contractions import CONTRACTIONS

_NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {"zero": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-<>@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")


def normalise(answer: str) -> str:
    """An answer in lower case, without articles and punctuation, number words as digits, contractions with their
    apostrophe ("dont" is "don't").

    As the challenge's evaluation does it, a mark that touches a blank (and every mark beside a number like 1,000) goes,
    one between letters becomes a blank; a period goes unless a digit follows; colons and apostrophes stay, since
    "2:50" is a time and "girl's" is no plural. One difference: the challenge's program compares answers as they were
    written where all ten people wrote the same; here all are normalised, so that "Two" answers what ten called "two".
    """
    text = " ".join(answer.lower().split())
    plain = text
    for mark in _MARKS:
        gone = _THOUSANDS.search(text) or f" {mark}" in text or f"{mark} " in text
        plain = plain.replace(mark, "" if gone else " ")
    words = [_NUMBER_WORDS.get(word, word) for word in _PERIOD.sub("", plain).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Score of each answer that people gave, by how many of them gave it.

    With ten answers: the mean over all ways of leaving one person out of min(1, matches / 3). Where fewer people
    answered, 3 is lowered to the number that is left; one person's answer scores 1; none gives no score.

    Args:
        answers: of all people, normalised.
    """
    total = len(answers)
    if total <= 1:
        return dict.fromkeys(answers, 1.0)
    needed = min(3, total - 1)
    return {
        answer: (count * min(1, (count - 1) / needed) + (total - count) * min(1, count / needed)) / total
        for answer, count in Counter(answers).items()
    }


def commonest(answers: Sequence[str]) -> str | None:
    """The answer that most people gave, the first of them at a tie; None if nobody answered."""
    counts = Counter(answers)
    return max(counts, key=counts.__getitem__) if counts else None
