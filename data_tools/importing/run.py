"""One import from its first record to its report, or from where it was killed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data_tools.bar import Bar
from data_tools.importing.images import ImageRules
from data_tools.importing.making import Target, distinct, make_shard
from data_tools.importing.plan import checked, cut, told_apart
from data_tools.importing.record import Record
from data_tools.journal import Journal
from data_tools.options import Choices, existing_directory, plain_name
from data_tools.pool import Pool, processes, usable_cpus
from data_tools.regions.sources import open_regions
from data_tools.report import Report
from data_tools.writer import REPORT, clear_directory, refuse_shards, remove_partials
from vlp import __version__
from vlp.data.build import build_index
from vlp.errors import ConfigError, DataError

_ORDER = ("captions", "questions", "regions", "images resized", "samples", "shards")
"""In which the report tells what was written."""


def import_records(
    records: Iterable[Record],
    choices: Choices,
    report: Report,
    *,
    images: Path | None,
    regions: Path | None,
    text_only: bool,
) -> None:
    """Write the records that hold, index the shards, and report.

    Args:
        records: in the order in which they are to stand in the shards.
        report: with what the importer has read and skipped so far.
        images: directory of the images, if there is one.
        regions: region features, if there are any.
        text_only: samples have neither.
    Raises:
        ConfigError: a path that is not there, or neither images nor regions.
        DataError: shards are there already, an unfinished import of something else, or no record is left.
    """
    if images is not None:
        existing_directory(images, "--images")
    elif not text_only:
        _can_do_without_images(choices, regions)
    source = open_regions(regions) if regions is not None else None
    rules = ImageRules(choices.resize, choices.quality, choices.min_side, choices.max_aspect)
    target = Target(choices.out, images, source, rules, text_only, remake=choices.overwrite)
    # A source that cannot be read says so before anything is overwritten.
    walk = iter(records)
    first = list(islice(walk, 1))
    with begun(choices, report) as journal:
        total = len(records) if isinstance(records, Sized) else None
        try:
            made = _make(chain(first, walk), target, choices, report, total)
        except KeyboardInterrupt:
            raise DataError(f"{choices.out}: stopped; say the same command again to go on") from None
        report.save(choices.out)
        if not report.written.get("samples"):
            journal.end()
            raise DataError(
                f"{choices.out}: nothing is left to write: {report.reasons()}; see import_report.json there"
            )
        notes = {"vlp": __version__, "command": report.source.get("command", "")}
        if source is not None:
            notes["regions"] = source.provenance
        for part, names in made.items():
            _remove_others(choices, part, names)
            if names:
                build_index(choices.out / part, text_only=text_only, made_by=notes)
        journal.end()
    report.show(choices.out)


def _can_do_without_images(choices: Choices, regions: Path | None) -> None:
    if regions is None:
        raise ConfigError(
            "--images: is missing; give the directory of the images, or region features alone (--regions)"
        )
    for name in ("resize", "min_side", "max_aspect", "drop_duplicates"):
        if getattr(choices, name):
            raise ConfigError(f"--{name.replace('_', '-')}: there are no images to look at; give --images too")


def _make(
    records: Iterable[Record], target: Target, choices: Choices, report: Report, total: int | None
) -> dict[str, set[str]]:
    """Make all shards and take over what came of them; gives the names of the shards of each part."""
    made: dict[str, set[str]] = {name: set() for name, _ in choices.split} or {"": set()}
    # Kept apart until the end: results come in between, and a report is to tell things in one order.
    written, parts = Report({}), {part: Report({}) for part in made}
    bar = Bar("importing", total if total is None or choices.limit is None else min(total, choices.limit))
    with Pool(target, _workers(choices, total), bar.show) as pool, bar:
        taken = checked(records, report, text_only=target.text_only)
        if target.regions is not None:
            taken = told_apart(taken, target.regions, report)
        # Before anything is handed to processes: how far these are ahead must not decide what is read.
        taken = islice(taken, choices.limit)
        if choices.drop_duplicates and target.images is not None:
            taken = distinct(pool, taken, report)
        for shard in pool.ordered(make_shard, cut(taken, choices, text_only=target.text_only)):
            if shard.report.written.get("samples"):
                made[shard.part].add(shard.name)
                shard.report.wrote("shards")
            written.add(shard.report)
            parts[shard.part].add(shard.report)
    report.add(written)
    report.written = _ordered(report.written)
    if choices.split:
        report.parts = {part: _ordered(counted.written) for part, counted in parts.items()}
    return made


def _workers(choices: Choices, total: int | None) -> int:
    """Processes, but no more than there are shards to make: starting one takes as long as a hundred photos."""
    if total is None:
        return choices.workers or usable_cpus()
    return processes(choices.workers, -(-total // choices.samples_per_shard) + len(choices.split))


def _ordered(written: dict[str, int]) -> dict[str, int]:
    return {what: written[what] for what in sorted(written, key=lambda what: _ORDER.index(what))}


@contextmanager
def begun(choices: Choices, report: Report) -> Iterator[Journal]:
    """The directory ready for shards: empty of them, or as a killed import of the same kind left it.

    Raises:
        DataError: shards that are not to be replaced, or another import, unfinished or running.
    """
    out, journal = choices.out, Journal(choices.out)
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; --out names the directory for the shards")
    parts = [out, *(out / name for name, _ in choices.split)]
    if not choices.overwrite and journal.plan() is None:
        for part in parts:
            refuse_shards(part)
    with journal.locked():
        plan, found = _plan(choices, report), journal.plan()
        if found is not None and found != plan and not choices.overwrite:
            raise DataError(
                f"{out}: holds an unfinished import of something else ({_difference(found, plan)}); "
                "say the same command to finish it, choose another --out, or say --overwrite"
            )
        if found != plan:
            if not choices.overwrite:
                for part in parts:
                    refuse_shards(part)
            for part in [*parts, *_parts_before(out)]:
                clear_directory(part)
            journal.clear()
        journal.begin(plan)
        for part in parts:
            part.mkdir(exist_ok=True)
            remove_partials(part)
        yield journal


def _plan(choices: Choices, report: Report) -> dict[str, Any]:
    """What makes two imports the same."""
    sizes = {str(path): path.stat().st_size for path in report.inputs if path.is_file()}
    return {"vlp": __version__, **report.source, "samples_per_shard": choices.samples_per_shard, "input bytes": sizes}


def _difference(found: dict[str, Any], plan: dict[str, Any]) -> str:
    name = next(name for name in {**plan, **found} if found.get(name) != plan.get(name))
    return f"{name}: {found.get(name, 'none')} there, {plan.get(name, 'none')} here"


def _parts_before(out: Path) -> list[Path]:
    """Folders of an earlier, split import."""
    try:
        parts = json.loads((out / REPORT).read_bytes())["parts"]
        return [out / name for name in parts if plain_name(name)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _remove_others(choices: Choices, part: str, names: set[str]) -> None:
    """Remove shards of records that are no more: those of a source that shrank since the import was killed."""
    for path in (choices.out / part).glob("*.tar"):
        if path.name not in names:
            if not choices.overwrite:
                raise DataError(
                    f"{path}: was made of records that the source no longer has; "
                    "choose another --out or say --overwrite"
                )
            path.unlink()
