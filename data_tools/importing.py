"""From records to shards: what all importers have in common once they have read their source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import track

from data_tools.options import existing_directory
from data_tools.regions import NpzRegions
from data_tools.report import Report
from data_tools.writer import SAMPLES_PER_SHARD, ShardWriter, prepare_directory, safe_key
from vlp import __version__
from vlp.data.build import build_index
from vlp.data.imagefile import MAX_IMAGE_BYTES, ImageFault, checked_image
from vlp.data.samples import Fault, clean
from vlp.errors import DataError
from vlp.types import Question, Regions


@dataclass(frozen=True, slots=True)
class Record:
    """What a source says of one image, before anything is checked."""

    file: str
    """The image, relative to the directory of images, with forward slashes. Its stem is the image id."""
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how shards are written."""

    images: Path
    regions: Path | None
    out: Path
    samples_per_shard: int = SAMPLES_PER_SHARD
    overwrite: bool = False


class _Skip(Exception):
    """This record is left out, for this reason."""


def import_records(records: Sequence[Record], target: Target, report: Report) -> None:
    """Write the records that hold, index the shards, and report.

    Args:
        records: in the order in which they are to stand in the shards.
        report: with what the importer has read and skipped so far.
    Raises:
        ConfigError: a directory that is not there.
        DataError: shards are there already, or no record is left.
    """
    existing_directory(target.images, "--images")
    regions = NpzRegions(target.regions) if target.regions is not None else None
    prepare_directory(target.out, overwrite=target.overwrite)
    console = Console()
    with ShardWriter(target.out, target.samples_per_shard) as writer:
        keys: set[str] = set()
        for record in _watched(records, console):
            try:
                _write(record, target.images, regions, writer, keys, report)
            except _Skip as skip:
                report.skip(str(skip), record.file)
    report.wrote("samples", writer.samples)
    report.wrote("shards", writer.shards)
    report.save(target.out)
    if not writer.samples:
        raise DataError(f"{target.out}: nothing is left to write: {report.reasons()}; see import_report.json there")
    build_index(target.out, made_by={"vlp": __version__, "command": report.source.get("command", "")})
    report.show(target.out, console)


def _watched(records: Sequence[Record], console: Console) -> Iterator[Record]:
    yield from track(records, "importing", console=console, disable=not console.is_terminal, transient=True)


def _write(
    record: Record, images: Path, regions: NpzRegions | None, writer: ShardWriter, keys: set[str], report: Report
) -> None:
    captions = _captions(record, report)
    if not captions and not record.questions:
        raise _Skip("image without a text")
    key = safe_key(str(PurePosixPath(record.file).with_suffix("")))
    if key in keys:
        raise _Skip("another image has the same key")
    image, width, height, extension = _image(record.file, images)
    seen = _regions(record.file, regions, report)
    metadata = {"id": PurePosixPath(record.file).stem, **record.metadata, "width": width, "height": height}
    writer.write(key, image, extension, seen, captions, record.questions, metadata)
    keys.add(key)
    report.wrote("captions", len(captions))
    if record.questions:
        report.wrote("questions", len(record.questions))
    if seen is not None:
        report.wrote("regions", len(seen))


def _captions(record: Record, report: Report) -> list[str]:
    kept = []
    for caption in record.captions:
        cleaned = clean(caption)
        if cleaned:
            kept.append(cleaned)
        else:
            report.skip("empty caption", record.file)
    return kept


def _image(file: str, images: Path) -> tuple[bytes, int, int, str]:
    parts = PurePosixPath(file)
    if parts.is_absolute() or ".." in parts.parts or "\\" in file or "\0" in file:
        raise _Skip("image name points outside the directory of images")
    path = images / parts
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise _Skip(f"image file larger than {MAX_IMAGE_BYTES >> 20} MiB")
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise _Skip("image missing") from None
    except OSError as error:
        raise _Skip(f"image cannot be read: {error.strerror}") from None
    try:
        return data, *checked_image(data)
    except ImageFault as fault:
        raise _Skip(f"image {fault}") from None


def _regions(file: str, regions: NpzRegions | None, report: Report) -> Regions | None:
    if regions is None:
        return None
    try:
        seen = regions.read(file)
    except Fault as fault:
        raise _Skip(f"regions: {fault}") from None
    if seen is None or not len(seen):
        report.note("written without regions: --regions has none for the image", file)
        return None
    return seen
