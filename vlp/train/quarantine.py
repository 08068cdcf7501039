"""Stops a run whose data turn out to be broken, instead of training on what is left of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vlp.distributed import World, share
from vlp.errors import DataError
from vlp.train.hooks import Hook
from vlp.train.logs import Logs

if TYPE_CHECKING:
    from vlp.train.engine import StepResult
    from vlp.types import Step

_SAMPLES, _EXAMPLES = 10, 1000
"""No verdict before so many different samples were found bad, or so many examples were seen: one bad photo among the
first few is no rate. With 0.1 % of a dataset bad, the first ten come within 1000 examples once in ten million runs."""


class QuarantineGuard:
    """Counts what was replaced and what was seen. Every rank is told the same, so all come to the same verdict.

    Counts are of this start of the run: a resumed one begins anew.

    Args:
        limit: share of the examples seen that may be bad; 0 tolerates none, 1 any.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._seen = 0
        self._bad = 0
        self._samples: dict[tuple[str, str], set[str]] = {}

    def add(self, examples: int, records: Iterable[Mapping[str, str]]) -> None:
        """A step: the examples it was made of, and a record of each that had to be replaced (of all ranks)."""
        self._seen += examples
        for record in records:
            self._bad += 1
            self._seen += 1
            self._samples.setdefault((record["data"], record["shard"]), set()).add(record["key"])

    def check(self) -> None:
        """Raises DataError if too many examples are bad, naming the worst shard and what looks into it."""
        found = sum(map(len, self._samples.values()))
        early = self._seen < _EXAMPLES and found < _SAMPLES
        if self._bad <= self._limit * self._seen or (early and self._limit > 0):
            return
        (data, shard), keys = max(self._samples.items(), key=lambda item: len(item[1]))
        share = f"{self._bad / self._seen:.1%} of the examples seen so far ({self._bad:,} of {self._seen:,})"
        raise DataError(
            f"{share} cannot be used, and data.quarantine_limit allows {self._limit:.1%}; most of the bad samples "
            f"({len(keys):,} of {found:,}) are in {data}/{shard}: see quarantine.jsonl, and find and mend them all "
            f"with `vlp-data verify {data} --repair OUT`"
        )


class Quarantine(Hook):
    """Writes down the examples that were replaced, and ends a run that has too many.

    Args:
        limit: share of the examples seen that may be bad.
    """

    def __init__(self, limit: float, logs: Logs, world: World) -> None:
        self._guard = QuarantineGuard(limit)
        self._logs = logs
        self._world = world

    def after(self, step: Step, result: StepResult, record: dict[str, float]) -> None:
        records: list[dict[str, str]] = []
        if result.quarantined:  # all ranks know the total, so all come here together
            records = [replaced for part in share(step.quarantined, self._world) for replaced in part]
            self._logs.quarantine(step.number + 1, records)
        self._guard.add(result.examples, records)
        self._guard.check()
