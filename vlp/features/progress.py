"""How far a long extraction is: examples done, how fast, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Progress:
    """A line on standard error every few seconds.

    Args:
        total: examples to be done by all ranks; this one says how far all are if they keep its pace.
        ranks: how many share them.
        every: seconds between lines; the first comes after as long.
        clock: gives seconds.
    """

    def __init__(
        self, total: int, ranks: int = 1, every: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._ranks, self._every, self._clock = total, ranks, every, clock
        self._done = 0
        self._start = self._said = clock()

    def __call__(self, examples: int) -> None:
        """So many more are done here."""
        self._done += examples
        now = self._clock()
        if now - self._said >= self._every:
            self._said = now
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """What is said."""
        done = min(self._total, self._done * self._ranks)
        rate = done / max(now - self._start, 1e-9)
        left = (self._total - done) / rate if rate else 0.0
        share = 100 * done // max(1, self._total)
        return f"{done:,} of {self._total:,} examples ({share} %), {rate:,.1f} a second, {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
