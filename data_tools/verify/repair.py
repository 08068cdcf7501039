"""A clean copy of a damaged data directory: whole shards byte by byte, of the others the samples that are good."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.pool import Pool, Tick, mapped, processes
from data_tools.verify.directory import Verdict, fit
from data_tools.verify.findings import DAMAGE
from data_tools.verify.salvage import from_index, salvage
from data_tools.verify.shard import ShardCheck, Widths, look, reader
from data_tools.writer import REPORT
from vlp import __version__
from vlp.data import tar
from vlp.data.arrays import write_whole
from vlp.data.build import build_index
from vlp.data.manifest import INDEX
from vlp.data.scan import Places, grouped, key_and_extension
from vlp.data.tables import ShardTable, load_table
from vlp.errors import ConfigError, DataError

REPAIR_REPORT = "repair_report.json"
_OF_SHARDS = DAMAGE.keys() - {"index", "lengths", "missing", "foreign"}
"""Kinds of damage of a shard's own bytes."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is copied where."""

    directory: Path
    out: Path
    widths: Widths


@dataclass
class MendedShard:
    """What became of one shard."""

    name: str
    kept: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)
    """Keys of samples that are not in the copy, and why."""
    note: str = ""
    written: bool = True


@dataclass
class Mended:
    """What became of a data directory."""

    shards: list[MendedShard]

    @property
    def written(self) -> int:
        return sum(shard.written for shard in self.shards)

    def plain(self) -> list[dict[str, Any]]:
        """For a JSON report: the shards that are not copied as they are."""
        return [
            {
                "shard": shard.name,
                "kept": shard.kept,
                "note": shard.note,
                "dropped": [{"key": key, "reason": reason} for key, reason in shard.dropped],
            }
            for shard in self.shards
            if shard.note
        ]


def check_target(directory: Path, out: Path) -> None:
    """Raises ConfigError unless a copy of `directory` can be written to `out`."""
    where, source = out.resolve(), directory.resolve()
    if where == source or source in where.parents or where in source.parents:
        raise ConfigError(f"--repair {out}: must lie apart from {directory}, which stays as it is; take another folder")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--repair {out}: is a file; give a directory for the copy")
    if out.is_dir() and (next(out.glob("*.tar"), None) or (out / INDEX).exists()):
        raise ConfigError(f"--repair {out}: holds shards or an index already; take another folder")


def repaired(verdict: Verdict, out: Path, workers: int | None, watch: Callable[[int, int | None], None]) -> Mended:
    """Write a clean, indexed copy of what was checked.

    Raises:
        ConfigError: `out` is not free.
        DataError: nothing is left, or the copy cannot be indexed.
    """
    check_target(verdict.directory, out)
    out.mkdir(parents=True, exist_ok=True)
    target = Target(verdict.directory, out, verdict.widths)
    jobs = [(check.name, _damage(verdict, check), check.samples) for check in verdict.shards]
    with Pool(target, processes(workers, len(jobs)), lambda done: watch(done, verdict.samples)) as pool:
        mended = Mended(list(pool.ordered(_mend_or_copy, jobs)))
    named = {entry.name for entry in verdict.manifest.shards} if verdict.manifest is not None else set()
    lost = sorted(named - {check.name for check in verdict.shards})
    mended.shards += [MendedShard(name, note="is not there: all is lost", written=False) for name in lost]
    if not mended.written:
        raise DataError(f"{verdict.directory}: not one sample is good, so there is nothing to copy")
    if (verdict.directory / REPORT).is_file():
        shutil.copyfile(verdict.directory / REPORT, out / REPORT)
    _write_report(out, verdict, mended)
    notes = dict(verdict.manifest.made_by) if verdict.manifest is not None else {}
    dropped = sum(len(shard.dropped) for shard in mended.shards)
    notes["repaired"] = {"vlp": __version__, "dropped": dropped, "report": REPAIR_REPORT}
    each = partial(mapped, workers=workers, watch=lambda _: None)
    build_index(out, text_only=verdict.text_only, made_by=notes, each=each)
    return mended


def _damage(verdict: Verdict, check: ShardCheck) -> set[str]:
    odd = any(not fit(widths, verdict.widths) for widths in check.widths)
    return {kind for kind in _OF_SHARDS if check.findings.counts[kind]} | ({"width"} if odd else set())


def _write_report(out: Path, verdict: Verdict, mended: Mended) -> None:
    record = {"of": str(verdict.directory), "vlp": __version__, "shards": mended.plain()}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_whole(out / REPAIR_REPORT, text.encode(errors="backslashreplace") + b"\n")


def _mend_or_copy(target: Target, job: tuple[str, set[str], int], tick: Tick) -> MendedShard:
    name, damage, samples = job
    partial = target.out / f".{name}.{os.getpid()}.partial"
    try:
        if not damage:
            shutil.copyfile(target.directory / name, partial)
            mended = MendedShard(name, samples)
        else:
            mended = _mend(target, name, partial, tick)
            if mended.kept and damage == {"checksum"}:
                mended.note += "; its bytes changed since they were indexed, and what changed cannot be told"
        if mended.written:
            os.replace(partial, target.out / name)
    finally:
        partial.unlink(missing_ok=True)
    return mended


def _mend(target: Target, name: str, partial: Path, tick: Tick) -> MendedShard:
    path = target.directory / name
    try:
        members, edges, told = _members(target, name)
    except OSError as error:
        return MendedShard(name, note=f"cannot be read: {error.strerror or error}; all is lost", written=False)
    refused: dict[str, str] = {}
    samples = grouped(members, refused.setdefault)
    mended = MendedShard(name)
    whole = {frozenset(places) for key, places in samples.items() if key not in edges}
    with path.open("rb") as file:
        for key, places in samples.items():
            reason = refused.get(key) or _fault(file.fileno(), places, target.widths)
            reason = reason or _incomplete(key, places, told, edges, whole)
            if reason:
                mended.dropped.append((key, reason))
            tick()
        dropped = {key for key, _ in mended.dropped}
        kept = [member for member in members if key_and_extension(member.name)[0] not in dropped]
        mended.kept = len(samples) - len(dropped)
        mended.dropped += [(key, "its members are gone") for key in told if key not in samples]
        mended.note = f"{mended.kept:,} samples kept, {len(mended.dropped):,} dropped"
        mended.written = mended.kept > 0
        if mended.written:
            _write(partial, kept, file)
    return mended


def _members(target: Target, name: str) -> tuple[list[tar.Member], set[str], dict[str, set[str]]]:
    """What is left of a shard.

    Returns:
        its members in order; the keys of those that stand next to damage; and by key the members that each sample
        should have, empty where no index tells.
    """
    path = target.directory / name
    members: list[tar.Member] = []
    breaks: list[int] = []
    for member in salvage(path, lambda fault: None if fault.refused else breaks.append(len(members))):
        members.append(member)
    edges = {key_and_extension(member.name)[0] for place in breaks for member in members[max(0, place - 1) : place + 1]}
    told: dict[str, set[str]] = {}
    try:
        table = load_table(target.directory / INDEX / f"{name.removesuffix('.tar')}.npz")[0]
        lost = from_index(members, table, path.stat().st_size)
    except DataError:
        lost = None
    if lost is not None:
        members = sorted(members + lost, key=lambda member: member.offset)
        told = {key: _extensions(table, row) for row, key in enumerate(table.keys)}
    return members, edges, told


def _extensions(table: ShardTable, row: int) -> set[str]:
    return {extension for extension, (_, size_S) in table.members.items() if size_S[row] >= 0}


def _fault(descriptor: int, places: Places, widths: Widths) -> str:
    """What is wrong with a sample; blank if it is good."""
    looked = look(reader(descriptor, places))
    if looked.faults:
        return f"{looked.faults[0].member} {looked.faults[0].reason}"
    if looked.widths is not None and not fit(looked.widths, widths):
        return f"regions are {looked.widths[0]} wide with {looked.widths[1]} classes, not {widths[0]} with {widths[1]}"
    return ""


def _incomplete(
    key: str, places: Places, told: dict[str, set[str]], edges: set[str], whole: set[frozenset[str]]
) -> str:
    """Why a sample may lack a member; blank if the index, or its likeness to samples away from the damage, says not.

    Args:
        told: members of each sample, by the index.
        edges: keys that stand next to damage.
        whole: the sets of members that samples away from damage have.
    """
    if key in told:
        lost = sorted(told[key] - places.keys())
        return f"{lost[0]} is gone" if lost else ""
    return "stands next to damage and may have lost a member" if key in edges and set(places) not in whole else ""


def _write(path: Path, members: list[tar.Member], source: Any) -> None:
    """A tar of these members, their bytes and names as they were; the same members give the same bytes."""
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
            for member in members:
                info = tarfile.TarInfo(member.name)
                info.size = member.size
                source.seek(member.offset)
                archive.addfile(info, source)
        file.flush()
        os.fsync(file.fileno())
