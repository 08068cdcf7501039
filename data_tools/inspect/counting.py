"""What `vlp-data inspect` counts: one shard at a time, in processes, added up. Memory grows with what is different."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from data_tools.pool import Tick
from vlp.data.arrays import ArrayFault, read_npy
from vlp.data.index import Index, ShardTable
from vlp.data.samples import Fault, regions_npz
from vlp.data.shards import ShardReader
from vlp.data.text import TextEncoder

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_NAMED = 3
"""Unreadable samples that are named."""


@dataclass(frozen=True)
class Source:
    """What is counted, and by which tokenizer, if any."""

    index: Index
    encoder: TextEncoder | None = None


@dataclass
class Counts:
    """Counts over samples. A `Counter[int]` is a histogram: how often each size came."""

    samples: int = 0
    captions: Counter[int] = field(default_factory=Counter)
    """By words."""
    questions: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    """Texts by tokens, specials included."""
    widths: Counter[int] = field(default_factory=Counter)
    """Of images whose header can be read, in pixels."""
    heights: Counter[int] = field(default_factory=Counter)
    aspects: Counter[int] = field(default_factory=Counter)
    """Width by height, in hundredths."""
    unknown_sizes: int = 0
    """Images whose header cannot be read."""
    regions: Counter[int] = field(default_factory=Counter)
    """Of samples that have regions."""
    words: Counter[str] = field(default_factory=Counter)
    """Of captions and questions, case folded."""
    answers: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    """Questions without an answer."""
    token_ids: Counter[int] = field(default_factory=Counter)
    class_mass: Counter[int] = field(default_factory=Counter)
    """Probability of each region class, added over regions, in millionths; or how many regions name it."""
    class_top: Counter[int] = field(default_factory=Counter)
    """Regions of which a class is the most probable."""
    caption_hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    bad: int = 0
    """Samples whose texts or classes cannot be read."""
    bad_names: list[str] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Take over what was counted elsewhere."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, each.name, mine + theirs)
        self.bad_names = self.bad_names[:_NAMED]

    @property
    def distinct_captions(self) -> int:
        return len(np.unique(np.concatenate([np.zeros(0, np.uint64), *self.caption_hashes])))


def count_shard(source: Source, shard: int, tick: Tick) -> Counts:
    """Count one shard; its images are left alone, since the index has their sizes.

    Raises:
        DataError: the shard's index cannot be used, or the shard cannot be fetched.
    """
    table = source.index.table(shard)
    counts = _of_table(table)
    reader = ShardReader(source.index)
    hashes: list[bytes] = []
    for row in range(len(table)):
        try:
            hashes += _count_texts(counts, reader, shard, row, source.encoder)
            if table.regions_S[row]:
                _count_classes(counts, reader, table, shard, row)
        except Fault as fault:
            counts.bad += 1
            if len(counts.bad_names) < _NAMED:
                name = source.index.manifest.shards[shard].name
                counts.bad_names.append(f"{name}/{table.keys[row]} ({fault})")
        tick()
    reader.close()
    counts.caption_hashes.append(np.frombuffer(b"".join(hashes), np.uint64))
    return counts


def _of_table(table: ShardTable) -> Counts:
    known_S = table.has_image_S & (table.width_S > 0) & (table.height_S > 0)
    width_S, height_S = table.width_S[known_S].astype(np.int64), table.height_S[known_S].astype(np.int64)
    return Counts(
        samples=len(table),
        widths=Counter(width_S.tolist()),
        heights=Counter(height_S.tolist()),
        aspects=Counter((100 * width_S // height_S).tolist()),
        unknown_sizes=int((table.has_image_S & ~known_S).sum()),
        regions=Counter(table.regions_S[table.regions_S > 0].tolist()),
    )


def _count_texts(
    counts: Counts, reader: ShardReader, shard: int, row: int, encoder: TextEncoder | None
) -> Sequence[bytes]:
    """Counts a sample's texts; gives a hash of each caption."""
    texts = reader.texts(shard, row)
    questions = [question.text for question in texts.questions]
    for lengths, lines in ((counts.captions, texts.captions), (counts.questions, questions)):
        lengths.update(len(line.split()) for line in lines)
        for line in lines:
            counts.words.update(_WORD.findall(line.casefold()))
            if encoder is not None:
                ids = encoder.encode(line)[0]
                counts.tokens[len(ids)] += 1
                counts.token_ids.update(ids[1:-1].tolist())
    for question in texts.questions:
        counts.answers.update(question.answers)
        counts.unanswered += not question.answers
    return [hashlib.blake2b(caption.encode(), digest_size=8).digest() for caption in texts.captions]


def _count_classes(counts: Counts, reader: ShardReader, table: ShardTable, shard: int, row: int) -> None:
    """Counts the classes of a sample's regions, without reading their features where these stand apart."""

    def array(name: str) -> NDArray[np.generic] | None:
        data = reader.member(table, shard, row, f"{name}.npy")
        try:
            return read_npy(data) if data is not None else None
        except ArrayFault as fault:
            raise Fault(f"{name}.npy", str(fault)) from None

    probs_RC, classes_R = array("class_probs"), array("classes")
    packed = None if "features.npy" in table.members else reader.member(table, shard, row, "regions.npz")
    if packed is not None:
        arrays = regions_npz(packed)
        probs_RC, classes_R = arrays.get("class_probs"), arrays.get("classes")
    if probs_RC is not None and probs_RC.ndim == 2 and probs_RC.shape[1]:
        mass_C = np.rint(1e6 * probs_RC.astype(np.float64).sum(axis=0)).astype(np.int64)
        counts.class_mass.update({number: int(mass_C[number]) for number in np.flatnonzero(mass_C).tolist()})
        counts.class_top.update(probs_RC.argmax(axis=1).tolist())
    elif classes_R is not None and classes_R.ndim == 1:
        counts.class_mass.update({number: 1_000_000 * count for number, count in Counter(classes_R.tolist()).items()})
        counts.class_top.update(classes_R.tolist())


def load_encoder(tokenizer: str) -> TextEncoder:
    """A tokenizer that cuts nothing."""
    return TextEncoder(tokenizer, 1 << 30)
