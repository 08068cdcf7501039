"""Shards with other regions: each shard of a directory written again, with the regions that a maker finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.bar import Bar
from data_tools.importing.run import begun
from data_tools.journal import Journal, Note, holds
from data_tools.options import Choices
from data_tools.regions.maker import Found, Photo, RegionMaker
from data_tools.report import Report
from data_tools.writer import Sealed, ShardFile
from vlp import __version__
from vlp.data.build import build_index, index_shard
from vlp.data.imagefile import IMAGE_EXTENSIONS
from vlp.data.index import Index
from vlp.data.manifest import INDEX
from vlp.data.samples import Fault
from vlp.data.shards import BadSample, ShardReader
from vlp.errors import DataError
from vlp.types import Regions

_WINDOW = 256
"""Samples that a maker gets at a time: enough to sort photos by shape, and 100 regions of each are about 120 MB."""

_COPIED = ("json", "txt", *IMAGE_EXTENSIONS)
"""Members that go from shard to shard as they are; regions are replaced, members that vlp does not know left behind."""


@dataclass(frozen=True, slots=True)
class RegionRun:
    """Where shards with regions go, and what they are to hold."""

    out: Path
    without_images: bool = False
    """Leave the photos behind: samples then hold texts and regions alone."""
    half: bool = False
    """Keep features and class probabilities as float16."""
    overwrite: bool = False
    inputs: tuple[Path, ...] = ()
    """Files that regions are taken from: a killed run goes on only while they have their size."""


def add_regions(index: Index, maker: RegionMaker, run: RegionRun) -> None:
    """Write every shard of an index again, with the regions that a maker finds; a killed run goes on where it was.

    A sample whose image or whose stored regions are damaged is left out and reported; one for which there are no
    regions keeps its photo, or is left out where photos are.

    Raises:
        DataError: text-only data, the same directory in and out, shards that are not to be replaced, another run
            unfinished in it, no sample left, or none with regions.
    """
    if index.manifest.text_only:
        raise DataError(f"{index.directory}: holds texts alone; regions need images or their ids")
    if run.out.resolve() == Path(index.directory).resolve():
        raise DataError(f"--out {run.out}: is the directory that --data names; choose another")
    report = Report(
        {
            "command": "regions",
            "data": str(index.directory),
            "fingerprint": index.manifest.fingerprint,
            "regions": maker.provenance,
            "without_images": run.without_images,
            "half": run.half,
        },
        inputs=list(run.inputs),
    )
    with begun(Choices(run.out, overwrite=run.overwrite), report) as journal:
        with Bar("finding regions", index.manifest.samples) as bar:
            shards = _Shards(index, maker, run, journal, bar)
            for number in range(len(index.manifest.shards)):
                report.add(shards.make(number))
        report.save(run.out)
        if not report.written.get("regions"):
            journal.end()
            raise DataError(_nothing(index, run, report))
        made_by = {"vlp": __version__, "command": "regions", "regions": maker.provenance, "of": index.manifest.made_by}
        build_index(run.out, made_by=made_by)
        journal.end()
    report.show(run.out)


@dataclass(frozen=True, slots=True)
class _Item:
    """A sample on its way."""

    name: str
    """For the report."""
    key: str
    members: dict[str, bytes]
    photo: Photo
    texts: dict[str, int]
    """Captions and questions."""


class _Shards:
    """Makes the shards, one after the other."""

    def __init__(self, index: Index, maker: RegionMaker, run: RegionRun, journal: Journal, bar: Bar) -> None:
        self._index, self._maker, self._run, self._journal, self._bar = index, maker, run, journal, bar
        self._reader = ShardReader(index)
        self._done = 0

    def make(self, number: int) -> Report:
        """Write one shard and its index, unless that is done; says what came of it."""
        entry = self._index.manifest.shards[number]
        path, name = self._run.out / entry.name, f"shards/{entry.name}"
        note = self._journal.done(name)
        if note is not None and note.state == entry.checksum:
            known = Sealed(**note.made["sealed"]) if note.made["sealed"] else None
            if known is None or holds(path, known):
                self._tick(entry.samples)
                return Report.of(note.made["report"])
        path.unlink(missing_ok=True)
        report = Report({})
        file = ShardFile(path)
        try:
            self._fill(file, number, report)
            sealed = file.seal() if file.keys else None
            if sealed is not None:
                report.wrote("shards")
            made: dict[str, Any] = {"sealed": asdict(sealed) if sealed else None, "report": report.plain()}
            self._journal.note(name, Note(entry.checksum, made))
            if sealed is not None:
                file.publish()
        finally:
            file.discard()
        if sealed is not None:
            (self._run.out / INDEX).mkdir(exist_ok=True)
            index_shard(self._run.out, False, entry.name, sealed.checksum)
        return report

    def _fill(self, file: ShardFile, number: int, report: Report) -> None:
        samples = self._index.manifest.shards[number].samples
        for first in range(0, samples, _WINDOW):
            rows = range(first, min(first + _WINDOW, samples))
            items = list(self._items(number, rows, report))
            for item, found in zip(items, self._maker.make([item.photo for item in items]), strict=True):
                self._write(file, item, found, report)
            self._tick(len(rows))

    def _items(self, number: int, rows: range, report: Report) -> Iterator[_Item]:
        """The samples of some rows that can be read; the others go into the report."""
        reader, shard = self._reader, self._index.manifest.shards[number].name
        table = self._index.table(number)
        for row in rows:
            report.count("samples")
            key = table.keys[row]
            try:
                regions = self._maker.wants_regions
                sample = reader.read(number, row, image=False, regions=regions, texts=False)
                texts = reader.texts(number, row)
                found = {extension: reader.member(table, number, row, extension) for extension in _COPIED}
            except (Fault, BadSample) as fault:
                report.skip(f"{fault.member} {fault.reason}", f"{shard}/{key}")
                continue
            members = {extension: data for extension, data in found.items() if data is not None}
            image = next((members[name] for name in IMAGE_EXTENSIONS if name in members), None)
            yield _Item(
                name=f"{shard}/{key}",
                key=key,
                members=members,
                photo=Photo(
                    _image_id(texts.metadata or {}, key), image if self._maker.wants_image else None, sample.regions
                ),
                texts={"captions": len(texts.captions), "questions": len(texts.questions)},
            )

    def _write(self, file: ShardFile, item: _Item, found: Found, report: Report) -> None:
        if isinstance(found, Fault):
            report.skip(f"{found.member} {found.reason}", item.name)
            return
        members = item.members
        if self._run.without_images:
            members = {name: data for name, data in members.items() if name not in IMAGE_EXTENSIONS}
        regions = found if found is not None and len(found) else None
        if regions is None:
            if not members.keys() & set(IMAGE_EXTENSIONS):
                report.skip("sample without an image, for which there are no regions", item.name)
                return
            report.note("written without regions: there are none for the image", item.name)
        file.copy(item.key, members, _halved(regions) if self._run.half and regions is not None else regions)
        report.wrote("samples")
        for what, count in {**item.texts, "regions": len(regions) if regions is not None else 0}.items():
            if count:
                report.wrote(what, count)

    def _tick(self, samples: int) -> None:
        self._done += samples
        self._bar.show(self._done)


def _nothing(index: Index, run: RegionRun, report: Report) -> str:
    if not report.written.get("samples"):
        return f"{run.out}: nothing is left to write: {report.reasons()}; see import_report.json there"
    reader = ShardReader(index)
    number = next(number for number, entry in enumerate(index.manifest.shards) if entry.samples)
    image_id = _image_id(reader.texts(number, 0).metadata or {}, index.table(number).keys[0])
    return (
        f"{run.out}: not one sample got regions; the first image id of {index.directory} is {image_id!r}, "
        "so give regions of images that are named so"
    )


def _image_id(metadata: Mapping[str, Any], key: str) -> str:
    """`id` of a sample's JSON, or its key without folders."""
    named = metadata.get("id")
    return str(named) if isinstance(named, (str, int)) else key.rpartition("/")[2]


def _halved(regions: Regions) -> Regions:
    probs_RC = regions.class_probs_RC
    return replace(
        regions,
        features_RD=regions.features_RD.astype(np.float16),
        class_probs_RC=None if probs_RC is None else probs_RC.astype(np.float16),
    )
