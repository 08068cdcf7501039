"""Making one shard, or hashing some files: what an import's processes do. Each piece of work is done once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_tools.importing.images import ImageRules, content_hash, load_image
from data_tools.importing.plan import ShardJob
from data_tools.importing.record import Record, Skip
from data_tools.journal import Journal, Note, holds, state_of
from data_tools.pool import Pool, Tick
from data_tools.regions.sources import RegionSource
from data_tools.report import Report
from data_tools.writer import Sealed, ShardFile, Unwritable
from vlp.data.build import index_shard
from vlp.data.manifest import INDEX
from vlp.data.samples import Fault
from vlp.errors import DataError
from vlp.types import Regions

_HASHED_AT_ONCE = 256
"""Images of one piece of hashing work: about a second from a disk."""


@dataclass(frozen=True, slots=True)
class Target:
    """What shards are made of, how, and where they go; the same in all processes."""

    out: Path
    images: Path | None
    regions: RegionSource | None
    rules: ImageRules
    text_only: bool = False
    """Samples have neither image nor regions."""
    remake: bool = False
    """A finished shard whose source has changed is made again; without, that is refused."""

    @property
    def journal(self) -> Journal:
        return Journal(self.out)


@dataclass(frozen=True, slots=True)
class MadeShard:
    """What came of a shard; nothing stands under its name where no record held."""

    part: str
    name: str
    report: Report


def make_shard(target: Target, job: ShardJob, tick: Tick) -> MadeShard:
    """Write a shard and its index, unless that is done; says what was written and skipped.

    Raises:
        DataError: the source changed since the shard was made.
        OSError: the shard cannot be written.
    """
    path = target.out / job.part / job.name
    (path.parent / INDEX).mkdir(parents=True, exist_ok=True)
    name = f"{job.part or 'shards'}/{job.name}"
    state = state_of(job.records, target.images)
    note = _still(target, name, state)
    if note is not None:
        sealed = Sealed(**note.made["sealed"]) if note.made["sealed"] else None
        if sealed is None or holds(path, sealed):
            for _ in job.records:
                tick()
            return MadeShard(job.part, job.name, Report.of(note.made["report"]))
    path.unlink(missing_ok=True)
    report = Report({})
    shard = ShardFile(path)
    try:
        _fill(shard, target, job.records, report, tick)
        sealed = shard.seal() if shard.keys else None
        made = {"sealed": _plain(sealed), "report": report.plain()}
        target.journal.note(name, Note(state, made))
        if sealed is not None:
            shard.publish()
    finally:
        shard.discard()
    if sealed is not None:
        index_shard(path.parent, target.text_only, job.name, sealed.checksum)
    return MadeShard(job.part, job.name, report)


def distinct(pool: Pool[Target], records: Iterable[Record], report: Report) -> Iterator[Record]:
    """The records without those whose image file has the same bytes as an earlier one's."""
    seen: set[bytes] = set()
    jobs = enumerate(_batches(records))
    for batch, hashes in pool.ordered(hash_files, jobs):
        for record, digest in zip(batch, hashes, strict=True):
            if digest is not None and digest in seen:
                report.skip("image file with the same bytes as an earlier one", record.file)
                continue
            if digest is not None:
                seen.add(digest)
            yield record


def hash_files(
    target: Target, job: tuple[int, tuple[Record, ...]], tick: Tick
) -> tuple[tuple[Record, ...], list[bytes | None]]:
    """The hashes of some records' image files, from the journal if they are known."""
    assert target.images is not None
    number, records = job
    name, state = f"hashes/{number:07d}", state_of(records, target.images)
    note = _still(target, name, state)
    if note is None:
        hashes = [content_hash(target.images / record.file) for record in records]
        target.journal.note(name, Note(state, {"hashes": [digest.hex() if digest else None for digest in hashes]}))
    else:
        hashes = [bytes.fromhex(digest) if digest else None for digest in note.made["hashes"]]
    return records, hashes


def _still(target: Target, name: str, state: str) -> Note | None:
    """What the journal knows of a piece of work, if its source is as it was."""
    note = target.journal.done(name)
    if note is None or note.state == state:
        return note
    if target.remake:
        return None
    raise DataError(
        f"{target.out}: holds an unfinished import, and its source has changed since {name} was made; "
        "choose another --out or say --overwrite"
    )


def _fill(shard: ShardFile, target: Target, records: Iterable[Record], report: Report, tick: Tick) -> None:
    for record in records:
        tick()
        try:
            _write(shard, target, record, report)
        except (Skip, Unwritable) as reason:
            report.skip(str(reason), record.file)


def _write(shard: ShardFile, target: Target, record: Record, report: Report) -> None:
    image = load_image(target.images / record.file, target.rules) if target.images is not None else None
    regions = _regions(target, record, report)
    if image is None and regions is None and not target.text_only:
        raise Skip("image without regions")
    metadata = {"id": record.id(target.text_only), **record.metadata}
    if image is not None:
        metadata |= {"width": image.width, "height": image.height}
    data, extension = (image.data, image.extension) if image is not None else (None, "")
    shard.write(record.key(target.text_only), data, extension, regions, record.captions, record.questions, metadata)
    report.wrote("samples")
    if record.captions:
        report.wrote("captions", len(record.captions))
    if record.questions:
        report.wrote("questions", len(record.questions))
    if regions is not None:
        report.wrote("regions", len(regions))
    if image is not None and image.resized:
        report.wrote("images resized")


def _regions(target: Target, record: Record, report: Report) -> Regions | None:
    if target.regions is None:
        return None
    try:
        seen = target.regions.read(record.file)
    except Fault as fault:
        raise Skip(f"regions: {fault}") from None
    if seen is None or not len(seen):
        if target.images is not None:
            report.note("written without regions: --regions has none for the image", record.file)
        return None
    return seen


def _batches(records: Iterable[Record]) -> Iterator[tuple[Record, ...]]:
    source = iter(records)
    while batch := tuple(islice(source, _HASHED_AT_ONCE)):
        yield batch


def _plain(sealed: Sealed | None) -> dict[str, str | int] | None:
    return {"bytes": sealed.bytes, "mtime_ns": sealed.mtime_ns, "checksum": sealed.checksum} if sealed else None
