"""What an evaluation says: a JSON of numbers, a table to read, and predictions as results files have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vlp.tasks.outcomes import Group, Judgement, groups, intervals

COUNTS = ("questions", "examples", "images", "texts", "unreadable_images", "unreadable_samples")
"""Metrics that are whole numbers."""


@dataclass(frozen=True)
class Report:
    """A judgement with how sure it is."""

    facts: Mapping[str, Any]
    """What was judged: model, data, task."""
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    """95 % intervals of the metrics that are means over examples."""
    groups: tuple[Group, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, judgement: Judgement, facts: Mapping[str, Any], seed: int) -> Report:
        """The report of a judgement; the seed draws the bootstrap."""
        outcomes = judgement.outcomes
        return cls(facts, judgement.metrics, intervals(outcomes, seed), tuple(groups(outcomes)), judgement.notes)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        by_type: dict[str, dict[str, Any]] = {}
        for group in self.groups:
            by_type.setdefault(group.type, {})[group.kind] = {"count": group.count, **group.metrics}
        return {
            **self.facts,
            "metrics": dict(self.metrics),
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "by_type": by_type,
            "notes": list(self.notes),
        }

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.plain(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def show(self, title: str) -> None:
        """Print it as a table."""
        table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
        for name, value in self.metrics.items():
            low, high = self.intervals.get(name, (None, None))
            between = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
            table.add_row(name, f"{value:,.0f}" if name in COUNTS else f"{value:.4f}", between)
        console = Console()
        if self.metrics:
            console.print(table)
        for type in dict.fromkeys(group.type for group in self.groups):
            console.print(_by_type(type, [group for group in self.groups if group.type == type]))
        for note in self.notes:
            console.print(f"note: {note}", highlight=False, markup=False)


def _by_type(type: str, members: list[Group]) -> Table:
    names = list(members[0].metrics)
    table = Table(type, "examples", *names)
    for group in members:
        table.add_row(group.kind, f"{group.count:,}", *(f"{group.metrics[name]:.4f}" for name in names))
    return table


def write_results(path: Path, judgement: Judgement) -> None:
    """Write predictions as the VQA challenge's results file: a list of {"question_id", "answer"}.

    Ids that are whole numbers are written as such, as the challenge's are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    results = [
        {"question_id": int(each.id) if each.id.isdecimal() and each.id.isascii() else each.id, "answer": each.said}
        for each in judgement.outcomes
    ]
    path.write_text(json.dumps(results, ensure_ascii=False) + "\n", encoding="utf-8")
