"""Metrics of choosing one class."""

from __future__ import annotations

from collections.abc import Sequence


def macro_f1(said: Sequence[str], true: Sequence[str]) -> float:
    """The mean over classes of the harmonic mean of precision and recall; a class that is neither said nor true does
    not count. Source: van Rijsbergen 1979, chapter 7."""
    classes = {*said, *true}
    right = [one for one, other in zip(said, true, strict=True) if one == other]
    scores = [2 * right.count(each) / (said.count(each) + true.count(each)) for each in classes]
    return sum(scores) / len(scores) if scores else 0.0
