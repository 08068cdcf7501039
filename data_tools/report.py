"""What an import read, wrote, skipped and why: on the terminal and as `import_report.json` beside the shards."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from data_tools.writer import REPORT
from vlp.data.arrays import write_whole

_KEPT = 100
"""Names kept per reason; the counts are exact."""
_SHOWN = 3


@dataclass
class Skipped:
    count: int = 0
    names: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Counted while an import runs."""

    source: dict[str, Any]
    """The command and its arguments."""
    read: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, Skipped] = field(default_factory=dict)
    """By reason."""
    notes: dict[str, Skipped] = field(default_factory=dict)
    """What was written although something about it should be known, by reason."""
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of a split import, what was written to each part."""
    inputs: list[Path] = field(default_factory=list)
    """Files that the command was given."""

    def count(self, what: str, number: int = 1) -> None:
        """Something was read."""
        self.read[what] = self.read.get(what, 0) + number

    def wrote(self, what: str, number: int = 1) -> None:
        self.written[what] = self.written.get(what, 0) + number

    def skip(self, reason: str, name: str) -> None:
        """Something was left out."""
        _add(self.skipped, reason, [name])

    def note(self, reason: str, name: str) -> None:
        """Something was written, with a flaw."""
        _add(self.notes, reason, [name])

    def add(self, other: Report) -> None:
        """Take over what another report counted."""
        for what, number in other.read.items():
            self.count(what, number)
        for what, number in other.written.items():
            self.wrote(what, number)
        for mine, theirs in ((self.skipped, other.skipped), (self.notes, other.notes)):
            for reason, entry in theirs.items():
                _add(mine, reason, entry.names, entry.count)

    def plain(self) -> dict[str, Any]:
        """The report as JSON has it."""
        parts = {"parts": self.parts} if self.parts else {}
        return {
            "source": self.source,
            "read": self.read,
            "written": self.written,
            **parts,
            "skipped": _plain(self.skipped),
            "notes": _plain(self.notes),
        }

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Report:
        """The report that `plain` gave."""
        report = cls(plain["source"], plain["read"], plain["written"], parts=plain.get("parts", {}))
        for entries, name in ((report.skipped, "skipped"), (report.notes, "notes")):
            entries.update({entry["reason"]: Skipped(entry["count"], entry["examples"]) for entry in plain[name]})
        return report

    def save(self, out: Path) -> None:
        """Write `import_report.json`."""
        text = json.dumps(self.plain(), indent=1, ensure_ascii=False)
        write_whole(out / REPORT, text.encode() + b"\n")

    def show(self, out: Path) -> None:
        """Print the report in a few lines."""
        typer.echo(f"read {_listed(self.read)}")
        typer.echo(f"wrote {_listed(self.written)} to {out}")
        for part, written in self.parts.items():
            typer.echo(f"  {part}: {_listed(written)}")
        for verb, reasons in (("skipped", self.skipped), ("note:", self.notes)):
            for reason, entry in reasons.items():
                line = f"{verb} {entry.count}: {reason} ({_examples(entry)})"
                typer.echo(line)

    def reasons(self) -> str:
        """All reasons with their counts, the most frequent first."""
        by_count = sorted(self.skipped.items(), key=lambda item: -item[1].count)
        return ", ".join(f"{entry.count} x {reason}" for reason, entry in by_count) or "the source is empty"


def _add(entries: dict[str, Skipped], reason: str, names: list[str], count: int = 1) -> None:
    entry = entries.setdefault(reason, Skipped())
    entry.count += count
    # A name of a file that is not UTF-8 holds half a surrogate pair, which neither a terminal nor JSON takes.
    entry.names += [name.encode(errors="backslashreplace").decode() for name in names[: _KEPT - len(entry.names)]]


def _plain(entries: dict[str, Skipped]) -> list[dict[str, Any]]:
    return [{"reason": reason, "count": entry.count, "examples": entry.names} for reason, entry in entries.items()]


def counted(number: int, what: str) -> str:
    """A number of things, named in the plural: `counted(1, "images of the split")` is "1 image of the split"."""
    things, blank, more = what.partition(" ")
    return f"{number:,} {things.removesuffix('s') if number == 1 else things}{blank}{more}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(counted(number, what) for what, number in counts.items()) or "nothing"


def _examples(entry: Skipped) -> str:
    more = ", ..." if entry.count > _SHOWN else ""
    return ", ".join(entry.names[:_SHOWN]) + more
