"""The images and texts that retrieval ranks: read from the shards, named by place, read again when they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlp.data.samples import Fault
from vlp.data.shards import BadSample
from vlp.errors import DataError

if TYPE_CHECKING:
    from vlp.data.dataset import Dataset
    from vlp.tasks.task import Task
    from vlp.types import Sample


@dataclass
class Candidates:
    """Images in the order of the index, and their texts. Holds places and words, no image."""

    rows: list[tuple[int, int]] = field(default_factory=list)
    """Shard and row of each image."""
    places: list[str] = field(default_factory=list)
    """`<shard>/<key>` of each image."""
    texts: list[str] = field(default_factory=list)
    image_T: list[int] = field(default_factory=list)
    """Which image each text belongs to."""
    unreadable: int = 0
    without_texts: int = 0
    """Images that no text belongs to: nothing could be found for them."""

    def __len__(self) -> int:
        return len(self.rows)

    def matches(self) -> NDArray[np.bool_]:
        """True where image and text belong together, [I, T]."""
        matches_IT: NDArray[np.bool_] = np.arange(len(self))[:, None] == np.array(self.image_T)[None, :]
        return matches_IT

    def folds(self, number: int) -> list[Candidates]:
        """Parts of (as far as may be) equally many images, each with its own texts."""
        parts = []
        for images in np.array_split(np.arange(len(self)), number):
            first, last = int(images[0]), int(images[-1]) + 1
            texts = [t for t, image in enumerate(self.image_T) if first <= image < last]
            part = Candidates(self.rows[first:last], self.places[first:last])
            part.texts = [self.texts[t] for t in texts]
            part.image_T = [self.image_T[t] - first for t in texts]
            parts.append(part)
        return parts


def find_candidates(task: Task, dataset: Dataset, most: int) -> Candidates:
    """The first `most` images that can be read and have texts.

    Raises:
        DataError: there is none.
    """
    found = Candidates()
    for shard, entry in enumerate(dataset.index.manifest.shards):
        for row in range(entry.samples):
            if len(found) == most:
                return found
            try:
                sample = read_image(task, dataset, (shard, row), texts=True)
            except (BadSample, Fault):
                found.unreadable += 1
                continue
            texts = task.texts_of(sample)
            found.without_texts += not texts
            if texts:
                found.texts += texts
                found.image_T += [len(found)] * len(texts)
                found.rows.append((shard, row))
                found.places.append(f"{entry.name.removesuffix('.tar')}/{sample.key}")
    if not len(found):
        raise DataError(f"{dataset.directory}: no image with {task.texts} can be read, so none is ranked")
    return found


def read_image(task: Task, dataset: Dataset, place: tuple[int, int], *, texts: bool = False) -> Sample:
    """A sample with its image as the task takes it, which has been decoded once to see that it can be.

    Raises:
        BadSample, Fault: it cannot be used.
    """
    sample = dataset.read(*place, image=task.wants_image, regions=task.wants_regions, texts=texts)
    if texts:
        task.images.prepare(sample)
    return sample


def check_folds(candidates: Candidates, folds: int, directory: str) -> Sequence[Candidates]:
    """The candidates in so many parts.

    Raises:
        DataError: there are fewer images than parts.
    """
    if len(candidates) < folds:
        raise DataError(f"{directory}: {len(candidates)} images cannot be judged in {folds} folds; lower task.folds")
    return candidates.folds(folds)
