"""The answer vocabulary of a dataset: the answers that a model can choose from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from vlp.data.dataset import Dataset
from vlp.data.shards import BadSample
from vlp.errors import DataError
from vlp.metrics.vqa import commonest, normalise
from vlp.types import Question


def answer_vocabulary(datasets: Iterable[Dataset], min_count: int, most: int | None = None) -> tuple[str, ...]:
    """Normalised answers that are the commonest one of at least `min_count` questions, most frequent first.

    With ten answers to a question, the commonest counts. Published models of VQA v2 take the answers of more than 8
    questions, 3129 of them (Teney et al. 2018, arXiv 1708.02711).

    Args:
        most: keep only so many.
    Raises:
        DataError: no question has an answer.
    """
    counts: Counter[str] = Counter()
    for dataset in datasets:
        for question in questions_of(dataset):
            answer = commonest([normalise(answer) for answer in question.answers])
            counts.update([answer] if answer else [])
    kept = [
        answer for answer, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= min_count
    ]
    if not kept:
        raise DataError(
            f"data.train: no answer occurs for {min_count} questions; lower min_count, or import questions with answers"
        )
    return tuple(kept[:most])


def questions_of(dataset: Dataset) -> Iterator[Question]:
    """All questions that can be read."""
    for shard, entry in enumerate(dataset.index.manifest.shards):
        for row in range(entry.samples):
            try:
                yield from dataset.read(shard, row, image=False, regions=False, texts=True).questions
            except BadSample:  # the loader will meet it again, replace it and record it
                continue
