"""From records to shards on paper: which records are taken, and which make which shard. Nothing is written here.

Records are cut into shards before any image is read: records i * n .. (i + 1) * n - 1 of a part make its shard i, less
those whose image or regions turn out unusable. So shards do not depend on each other, any number of processes writes
the same, and a killed import knows what is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from data_tools.importing.record import Record, Skip
from data_tools.options import Choices
from data_tools.regions.sources import RegionSource
from data_tools.report import Report
from data_tools.writer import shard_name
from vlp.data.samples import clean
from vlp.types import Question


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to be written."""

    part: str
    """Folder below --out; empty where the import is not split."""
    number: int
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """File name of the shard."""
        return shard_name(self.number)


def checked(records: Iterable[Record], report: Report, *, text_only: bool) -> Iterator[Record]:
    """The records that have a text and a key of their own, with their texts cleaned.

    Of two records with one key the first stands, even if its image turns out to be unusable.
    """
    keys: set[str] = set()
    for record in records:
        try:
            record.check_name()
            taken = _with_clean_texts(record, report)
            key = record.key(text_only)
            if key in keys:
                raise Skip("another image has the same key")
        except Skip as skip:
            report.skip(str(skip), record.file)
        else:
            keys.add(key)
            yield taken


def told_apart(records: Iterable[Record], source: RegionSource, report: Report) -> Iterator[Record]:
    """The records without those whose regions another, earlier one has: `b/1.jpg` after `a/1.jpg`, of one `1.npz`."""
    first: dict[str, str] = {}
    for record in records:
        stem = record.id(text_only=False)
        other = first.setdefault(stem, record.file)
        entry = source.entry(record.file) if other != record.file else None
        if entry is not None and entry == source.entry(other):
            report.skip("regions that stand for two images: sort the files into folders as the images", record.file)
        else:
            yield record


def cut(records: Iterable[Record], choices: Choices, *, text_only: bool) -> Iterator[ShardJob]:
    """The shards of the records; of each part in order."""
    waiting: dict[str, list[Record]] = {name: [] for name, _ in choices.split} or {"": []}
    shards = dict.fromkeys(waiting, 0)

    def job(part: str) -> ShardJob:
        made = ShardJob(part, shards[part], tuple(waiting[part]))
        shards[part] += 1
        waiting[part].clear()
        return made

    for record in islice(records, choices.limit):
        part = part_of(record.id(text_only), choices.split)
        waiting[part].append(record)
        if len(waiting[part]) == choices.samples_per_shard:
            yield job(part)
    yield from (job(part) for part in waiting if waiting[part])


def part_of(image_id: str, split: tuple[tuple[str, float], ...]) -> str:
    """The part that an image belongs to: a function of its id alone, so that it is the same in every import.

    The id's hash is a place in 0..1, and each part has a stretch of its share's length, in the order given.
    """
    if not split:
        return ""
    digest = hashlib.blake2b(clean(image_id).encode(errors="surrogatepass"), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    end = 0.0
    for name, share in split:
        end += share
        if place < end:
            return name
    return split[-1][0]


def _with_clean_texts(record: Record, report: Report) -> Record:
    captions = []
    for caption in map(clean, record.captions):
        if flaw := _flaw(caption):
            report.skip(f"{flaw} caption", record.file)
        else:
            captions.append(caption)
    questions = []
    for question in record.questions:
        if flaw := _flaw(clean(question.text)):
            report.skip(f"{flaw} question", _named(question, record))
        else:
            questions.append(question)
    if not captions and not questions:
        raise Skip("image without a text")
    return replace(record, captions=tuple(captions), questions=tuple(questions))


def _named(question: Question, record: Record) -> str:
    return f"{record.file} ({question.id})" if question.id else record.file


def _flaw(text: str) -> str:
    if not text:
        return "empty"
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        return "undecodable"
    return ""
