"""Scores of many pairs of images and texts, split over ranks, within a token budget.

The blocks in which text and image meet run for every pair, the last of them for what the pooler reads
(`vlp.models.lastblock`). What a text or an image alone decides (towers, embeddings, a backbone of pixels) runs once for
each, where the architecture allows it (`vlp.models.halves`). Memory holds the states of all texts and of this rank's
images, and one number per pair; never the states of all pairs.

Shape suffixes: I images, T texts, D numbers of a vector, N and M text and image tokens, H width of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp.data.batch import ImageForm, collate
from vlp.models.halves import unimodal
from vlp.objectives.itc import Contrast
from vlp.objectives.ranking import Ranking, match_score
from vlp.tasks.candidates import Candidates, read_image
from vlp.tasks.judge import Judge
from vlp.types import Batch, Example, ImageInput, RegionInput, Sample

if TYPE_CHECKING:
    from vlp.tasks.module import TaskModule
    from vlp.tasks.task import Task

T = TypeVar("T")
Pair = tuple[int, int]
"""Number of an image, number of a text."""


class Scorer:
    """Scores the candidates of a retrieval task; collective.

    Args:
        apart: whether the model's unimodal part may run once per text and image (see `halves.separable`).
    """

    def __init__(self, task: Task, judge: Judge, candidates: Candidates, *, apart: bool) -> None:
        self._task, self._judge, self._candidates, self._apart = task, judge, candidates, apart
        self._texts = [task.bare_example(Sample(""), text) for text in candidates.texts]
        index = judge.dataset.index
        regions = [int(index.table(shard).regions_S[row]) for shard, row in candidates.rows]
        self._image_tokens = [task.image_tokens(count) for count in regions]
        self._own = range(judge.world.rank, len(candidates), judge.world.size)
        self._read: tuple[int, ImageInput | None] | None = None

    def similarities(self, objective: Contrast) -> NDArray[np.float32]:
        """What a dual encoder makes of all pairs, [I, T], on every rank."""
        width = objective.config.width
        own_texts = range(self._judge.world.rank, len(self._texts), self._judge.world.size)
        texts = self._vectors(objective, own_texts, self._text, self._text_length)
        images = self._vectors(objective, self._own, self._alone, self._image_length)
        return np.asarray(images[:, width : 2 * width] @ texts[:, :width].T, np.float32)

    def matches(self, objective: Ranking, texts_I: Sequence[NDArray[np.int64]]) -> NDArray[np.float32] | None:
        """What a cross-encoder makes of each image with some of the texts, [I, T], on rank 0; NaN for other pairs.

        Args:
            texts_I: for each image the texts that it is scored with.
        """
        halves = self._halves() if self._apart else None

        def scored(pairs: list[Pair]) -> list[float]:
            examples = [self._pair(objective, pair, halves) for pair in pairs]
            if halves is None:
                return self._judge.run(self._task.collate([[each] for each in examples], 0), self._scores(objective))
            return self._judge.run(self._joint(examples), halves.scores(objective, pairs))

        pairs = ((i, int(t)) for i in self._own for t in texts_I[i])
        lengths = (self._image_tokens[i] + self._text_length(int(t)) for i in self._own for t in texts_I[i])
        own = [score for part in self._in_batches(pairs, lengths, scored) for score in part]
        gathered = self._judge.gathered([own])
        if not self._judge.world.is_main:
            return None
        scores_IT = np.full((len(self._candidates), len(self._texts)), np.nan, np.float32)
        for rank, values in enumerate(gathered):
            start = 0
            for i in range(rank, len(self._candidates), self._judge.world.size):
                scores_IT[i, texts_I[i]] = values[start : start + len(texts_I[i])]
                start += len(texts_I[i])
        return scores_IT

    # --------------------------------------------------------------------------------------------- one half alone

    def _vectors(
        self,
        objective: Contrast,
        own: range,
        example: Callable[[int], Example],
        length: Callable[[int], int],
    ) -> NDArray[np.float32]:
        """The head's vectors of all texts or all images, on every rank; this one makes `own`."""

        def made(numbers: list[int]) -> NDArray[np.float32]:
            examples = [
                _with_target(example(number), objective.name, objective.target_of(number, number)) for number in numbers
            ]
            batch = self._task.collate([[each] for each in examples], 0)
            vectors: Tensor = self._judge.run(batch, lambda module, moved: module.scores(moved, objective.name))
            return vectors.cpu().numpy()

        parts = list(self._in_batches(own, map(length, own), made))
        shares = self._judge.shared(np.concatenate(parts) if parts else made([]))
        result = np.empty((sum(map(len, shares)), shares[0].shape[1]), np.float32)
        for rank, share in enumerate(shares):
            result[rank :: len(shares)] = share
        return result

    def _halves(self) -> _Halves:
        """The unimodal states of all texts and of this rank's images, each run once."""
        config = self._task.setting.model.unimodal
        found = _Halves({}, {}, config["text"].width, config["image"].width)
        everything = range(len(self._texts))
        for part in self._in_batches(everything, map(self._text_length, everything), self._states(self._text, 0)):
            found.text |= part
        for part in self._in_batches(self._own, map(self._image_length, self._own), self._states(self._alone, 1)):
            found.image |= part
        return found

    def _states(self, example: Callable[[int], Example], which: int) -> Callable[[list[int]], dict[int, Tensor]]:
        """Makes the unimodal states of texts (0) or images (1) by their numbers."""

        def run(numbers: list[int]) -> dict[int, Tensor]:
            batch = self._task.collate([[example(number)] for number in numbers], 0)
            states: Tensor = self._judge.run(batch, lambda module, moved: unimodal(module.model, moved)[which])
            packing = (batch.text.packing, batch.image.packing)[which]
            return dict(zip(numbers, torch.split(states, list(packing.lengths)), strict=True)) if numbers else {}

        return run

    def _text(self, number: int) -> Example:
        return self._texts[number]

    def _text_length(self, number: int) -> int:
        return len(self._texts[number].token_ids_T)

    def _image_length(self, number: int) -> int:
        return self._image_tokens[number] + 2

    def _alone(self, number: int) -> Example:
        """An image with an empty text."""
        sample = read_image(self._task, self._judge.dataset, self._candidates.rows[number])
        return self._task.bare_example(sample, "")

    # -------------------------------------------------------------------------------------------------- both halves

    def _pair(self, objective: Ranking, pair: Pair, halves: _Halves | None) -> Example:
        i, t = pair
        image = self._image(i) if halves is None else halves.placeholder(i)
        return _with_target(replace(self._texts[t], image=image, targets={}), objective.name, objective.target())

    def _image(self, number: int) -> ImageInput | None:
        """The image as the model takes it; pairs come image by image, so the last one is kept."""
        if self._read is None or self._read[0] != number:
            self._read = number, self._alone(number).image
        return self._read[1]

    def _joint(self, examples: list[Example]) -> Batch:
        """A batch whose images have no features: their states are known."""
        return self._task.narrowed(collate(examples, ImageForm("regions", 0), self._task.forms))

    def _scores(self, objective: Ranking) -> Callable[[TaskModule, Batch], list[float]]:
        return lambda module, batch: match_score(module.scores(batch, objective.name)).tolist()

    def _in_batches(self, items: Iterable[T], lengths: Iterable[int], call: Callable[[list[T]], _R]) -> Iterator[_R]:
        """`call` on this rank's items, so many at once as fit the token budget, equally often on every rank."""
        sizes = list(_cut(lengths, self._judge.micro_tokens))
        most = max(self._judge.shared(len(sizes)))
        source = iter(items)
        for done in range(most):
            result = call(list(islice(source, sizes[done] if done < len(sizes) else 0)))
            if self._judge.world.is_main:
                self._judge.progress(done + 1, most)
            if done < len(sizes):
                yield result


_R = TypeVar("_R")


class _Halves:
    """Unimodal states by number of text and image, on the device."""

    def __init__(self, text: dict[int, Tensor], image: dict[int, Tensor], text_width: int, image_width: int) -> None:
        self.text, self.image = text, image
        self._widths = text_width, image_width

    def placeholder(self, image: int) -> RegionInput:
        """An image of as many tokens, without anything to see."""
        rows = len(self.image[image])
        return RegionInput(np.zeros((rows, 0), np.float32), np.zeros((rows, 4), np.float32))

    def scores(self, objective: Ranking, pairs: Sequence[Pair]) -> Callable[[TaskModule, Batch], list[float]]:
        def call(module: TaskModule, batch: Batch) -> list[float]:
            like = next(module.model.parameters())
            text_NH, image_MH = (
                torch.cat([like.new_zeros(0, width), *(states[pair[which]] for pair in pairs)])
                for states, width, which in zip((self.text, self.image), self._widths, (1, 0), strict=True)
            )
            found: list[float] = match_score(module.met_scores(text_NH, image_MH, batch, objective.name)).tolist()
            return found

        return call


def _with_target(example: Example, name: str, target: object) -> Example:
    return replace(example, targets={name: target})  # type: ignore[dict-item]


def _cut(lengths: Iterable[int], budget: int) -> Iterator[int]:
    """How many items in turn make a batch of at most `budget` tokens; a longer item stands alone."""
    size = used = 0
    for length in lengths:
        if size and used + length > budget:
            yield size
            size = used = 0
        size += 1
        used += length
    if size:
        yield size
