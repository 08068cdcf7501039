"""`vlp-data verify`: finds beforehand all that a run would stumble over, and writes a clean copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_tools.options import Workers

if TYPE_CHECKING:
    from rich.console import Console

    from data_tools.verify.directory import Verdict
    from data_tools.verify.findings import Finding
    from data_tools.verify.repair import Mended

_SHOWN = 3
"""Findings shown per kind; the report has more."""
_DROPPED_SHOWN = 10


def verify(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of shards, indexed or not.")],
    repair: Annotated[
        Path | None,
        typer.Option("--repair", metavar="OUT", help="Write a clean, indexed copy here; DIR stays as it is."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", "--out", metavar="FILE", help="Also write all that was found as JSON.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Check shards and their index to the last byte. Exits with 0 if all is well, 1 if not, 2 if used wrongly.

    Every tar is walked and compared with its checksum, every member read, every image decoded, every array looked
    through. With --repair the exit code still says how DIR is.
    """
    from rich.console import Console

    from data_tools.pool import usable_cpus
    from data_tools.verify.directory import check_directory
    from data_tools.verify.repair import check_target, repaired
    from vlp.data.arrays import write_whole

    console = Console()
    count = workers or usable_cpus()
    if repair is not None:
        check_target(directory, repair)
    with _Bar(console, "checking") as bar:
        verdict = check_directory(directory, count, bar)
    _show(verdict, console)
    result: dict[str, Any] = {
        "directory": str(directory),
        "clean": not verdict.findings.damage(),
        "shards": len(verdict.shards),
        "samples": verdict.samples,
        "indexed": verdict.manifest is not None,
        **verdict.findings.plain(),
    }
    if repair is not None:
        with _Bar(console, "copying") as bar:
            mended = repaired(verdict, repair, count, bar)
        _show_mended(mended, repair, console)
        result["repair"] = mended.plain()
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_whole(report, json.dumps(result, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        _line(console, f"report: {report}")
    if not result["clean"]:
        raise typer.Exit(1)


def _show(verdict: Verdict, console: Console) -> None:
    from rich.table import Table

    from data_tools.verify.findings import DAMAGE, NOTES

    findings = verdict.findings
    for title, kinds in (("damage", DAMAGE), ("notes", NOTES)):
        found = [kind for kind in kinds if findings.counts[kind]]
        if not found:
            continue
        table = Table(title, "count", "what it is")
        table.columns[1].justify = "right"
        for kind in found:
            table.add_row(kind, f"{findings.counts[kind]:,}", kinds[kind])
        console.print(table)
        for kind in found:
            _show_first(kind, findings.kept.get(kind, []), findings.counts[kind], console)
    damage = findings.damage()
    told = f"{damage:,} findings" if damage else "all is well"
    _line(console, f"{verdict.directory}: {len(verdict.shards):,} shards, {verdict.samples:,} samples: {told}")


def _show_first(kind: str, findings: list[Finding], count: int, console: Console) -> None:
    for finding in findings[:_SHOWN]:
        _line(console, f"{kind}: {finding}")
    if count > len(findings[:_SHOWN]) > 0:
        _line(console, f"{kind}: ... {count - len(findings[:_SHOWN]):,} more")


def _show_mended(mended: Mended, out: Path, console: Console) -> None:
    for shard in mended.shards:
        if shard.note:
            _line(console, f"{shard.name}: {shard.note}")
    dropped = [(shard.name, key, reason) for shard in mended.shards for key, reason in shard.dropped]
    for name, key, reason in dropped[:_DROPPED_SHOWN]:
        _line(console, f"dropped {name}: sample '{key}': {reason}")
    if len(dropped) > _DROPPED_SHOWN:
        _line(console, f"dropped {len(dropped) - _DROPPED_SHOWN:,} more: see repair_report.json there")
    kept = sum(shard.kept for shard in mended.shards)
    _line(console, f"{out}: {kept:,} samples in {mended.written:,} shards, {len(dropped):,} samples dropped; indexed")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Bar:
    """A bar on a terminal, and nothing elsewhere; called with what is done and, if known, of how much."""

    def __init__(self, console: Console, what: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task(what, total=None)

    def __call__(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
