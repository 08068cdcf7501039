"""`vlp-data verify`: finds beforehand all that a run would stumble over, and writes a clean copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_tools.options import Workers

if TYPE_CHECKING:
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
    from data_tools.bar import Bar
    from data_tools.verify.directory import check_directory
    from data_tools.verify.repair import check_target, repaired
    from vlp.data.arrays import write_whole

    if repair is not None:
        check_target(directory, repair)
    with Bar("checking") as bar:
        verdict = check_directory(directory, workers, bar.show)
    _show(verdict)
    result: dict[str, Any] = {
        "directory": str(directory),
        "clean": not verdict.findings.damage(),
        "shards": len(verdict.shards),
        "samples": verdict.samples,
        "indexed": verdict.manifest is not None,
        **verdict.findings.plain(),
    }
    if repair is not None:
        with Bar("copying") as bar:
            mended = repaired(verdict, repair, workers, bar.show)
        _show_mended(mended, repair)
        result["repair"] = mended.plain()
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_whole(report, json.dumps(result, indent=1, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        typer.echo(f"report: {report}")
    if not result["clean"]:
        raise typer.Exit(1)


def _show(verdict: Verdict) -> None:
    from rich.console import Console
    from rich.table import Table

    from data_tools.report import counted
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
        Console().print(table)
        for kind in found:
            _show_first(kind, findings.kept.get(kind, []), findings.counts[kind])
    damage = findings.damage()
    told = counted(damage, "findings") if damage else "all is well"
    held = f"{counted(len(verdict.shards), 'shards')}, {counted(verdict.samples, 'samples')}"
    typer.echo(f"{verdict.directory}: {held}: {told}")


def _show_first(kind: str, findings: list[Finding], count: int) -> None:
    for finding in findings[:_SHOWN]:
        typer.echo(f"{kind}: {finding}")
    if count > len(findings[:_SHOWN]) > 0:
        typer.echo(f"{kind}: ... {count - len(findings[:_SHOWN]):,} more")


def _show_mended(mended: Mended, out: Path) -> None:
    from data_tools.report import counted

    for shard in mended.shards:
        if shard.note:
            typer.echo(f"{shard.name}: {shard.note}")
    dropped = [(shard.name, key, reason) for shard in mended.shards for key, reason in shard.dropped]
    for name, key, reason in dropped[:_DROPPED_SHOWN]:
        typer.echo(f"dropped {name}: sample '{key}': {reason}")
    if len(dropped) > _DROPPED_SHOWN:
        typer.echo(f"dropped {len(dropped) - _DROPPED_SHOWN:,} more: see repair_report.json there")
    kept = sum(shard.kept for shard in mended.shards)
    held = f"{counted(kept, 'samples')} in {counted(mended.written, 'shards')}"
    typer.echo(f"{out}: {held}, {counted(len(dropped), 'samples')} dropped; indexed")
