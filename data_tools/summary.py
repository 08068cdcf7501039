"""What a data directory holds, counted: for `vlp-data inspect` on the terminal and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlp.data.index import Index
from vlp.data.samples import Fault
from vlp.data.shards import ShardReader

Row = tuple[str, str]
"""A name and what is to be said of it."""


@dataclass
class Summary:
    """Counts over all samples. Shape suffixes: S samples, one entry per caption, question or image with regions."""

    shards: int
    samples: int
    feature_width: int | None
    class_count: int | None
    text_only: bool
    caption_words: NDArray[np.int64]
    question_words: NDArray[np.int64]
    distinct_captions: int
    width_S: NDArray[np.int64]
    """Of the samples that have an image whose header can be read."""
    height_S: NDArray[np.int64]
    unknown_sizes: int
    """Samples with an image whose header cannot be read."""
    regions_S: NDArray[np.int64]
    """Of the samples that have regions."""
    answers: Counter[str]
    unanswered: int
    bad: list[str] = field(default_factory=list)
    """Samples whose texts cannot be read."""

    def overview(self) -> list[Row]:
        """How much there is."""
        rows = [
            ("shards", f"{self.shards:,}"),
            ("samples", f"{self.samples:,}" + (" (text only)" if self.text_only else "")),
            ("captions", f"{len(self.caption_words):,} ({self.distinct_captions:,} different)"),
            ("questions", f"{len(self.question_words):,}"),
            ("with an image", f"{len(self.width_S) + self.unknown_sizes:,}"),
            ("with regions", f"{len(self.regions_S):,}"),
        ]
        if self.feature_width:
            rows.append(("region features", f"{self.feature_width} wide"))
        if self.class_count:
            rows.append(("region classes", str(self.class_count)))
        if self.unknown_sizes:
            rows.append(("images without a readable header", f"{self.unknown_sizes:,}"))
        if self.bad:
            rows.append(("unreadable texts", f"{len(self.bad):,}: {', '.join(self.bad[:3])}"))
        return rows

    def spreads(self) -> list[tuple[str, tuple[str, ...]]]:
        """Name and smallest, median, mean, 95th percentile, largest of what was measured."""
        measured = {
            "words per caption": self.caption_words,
            "words per question": self.question_words,
            "image width, pixels": self.width_S,
            "image height, pixels": self.height_S,
            "regions per image": self.regions_S,
        }
        return [(name, _spread(values)) for name, values in measured.items() if len(values)]

    def balance(self, most: int = 15) -> list[tuple[str, int, float]]:
        """The most frequent answers with their counts and shares."""
        total = max(1, self.answers.total())
        ranked = sorted(self.answers.items(), key=lambda item: (-item[1], item[0]))
        return [(answer, count, count / total) for answer, count in ranked[:most]]


def summarise(index: Index, shards: Iterable[int]) -> Summary:
    """Count over some shards (numbers in the manifest); reads all their texts.

    Raises:
        DataError: a shard's index cannot be used.
    """
    reader = ShardReader(index)
    words: dict[str, list[int]] = {"captions": [], "questions": []}
    columns: dict[str, list[NDArray[np.int64]]] = {"width": [], "height": [], "regions": []}
    captions: set[int] = set()
    answers: Counter[str] = Counter()
    unanswered = samples = seen = unknown = 0
    bad: list[str] = []
    for shard in shards:
        table = index.table(shard)
        seen, samples = seen + 1, samples + len(table)
        known_S = table.has_image_S & (table.width_S > 0)
        unknown += int((table.has_image_S & ~known_S).sum())
        columns["width"].append(table.width_S[known_S].astype(np.int64))
        columns["height"].append(table.height_S[known_S].astype(np.int64))
        columns["regions"].append(table.regions_S[table.regions_S > 0].astype(np.int64))
        for row in range(len(table)):
            try:
                texts = reader.texts(shard, row)
            except Fault:
                bad.append(f"{index.manifest.shards[shard].name}/{table.keys[row]}")
                continue
            words["captions"] += [len(caption.split()) for caption in texts.captions]
            words["questions"] += [len(question.text.split()) for question in texts.questions]
            captions.update(hash(caption) for caption in texts.captions)
            answers.update(answer for question in texts.questions for answer in question.answers)
            unanswered += sum(not question.answers for question in texts.questions)
    reader.close()
    joined = {name: np.concatenate([np.zeros(0, np.int64), *parts]) for name, parts in columns.items()}
    return Summary(
        shards=seen,
        samples=samples,
        feature_width=index.manifest.feature_width,
        class_count=index.manifest.class_count,
        text_only=index.manifest.text_only,
        caption_words=np.array(words["captions"], np.int64),
        question_words=np.array(words["questions"], np.int64),
        distinct_captions=len(captions),
        width_S=joined["width"],
        height_S=joined["height"],
        unknown_sizes=unknown,
        regions_S=joined["regions"],
        answers=answers,
        unanswered=unanswered,
        bad=bad,
    )


def _spread(values: NDArray[np.int64]) -> tuple[str, ...]:
    figures = values.min(), np.median(values), values.mean(), np.percentile(values, 95), values.max()
    return tuple(f"{figure:,.1f}".removesuffix(".0") for figure in figures)
