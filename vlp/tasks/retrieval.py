"""Image-text retrieval by a cross-encoder: every pair goes through the model, the matching head says how well it fits.

Shape suffixes: I images, T texts, K pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from vlp.data.index import Block
from vlp.data.samples import Fault
from vlp.data.shards import BadSample
from vlp.errors import DataError
from vlp.metrics.recall import recall_at_k
from vlp.objectives.itm import other_sample, other_text
from vlp.objectives.ranking import Ranking, RankingConfig, match_score
from vlp.tasks.judge import Judge
from vlp.tasks.task import Setting, Task, TaskConfig, check_name
from vlp.types import Batch, Example, Pair, Sample, Slot

if TYPE_CHECKING:
    from vlp.tasks.module import TaskModule


class RetrievalConfig(TaskConfig):
    """Fine-tuning to rank a matched pair above sampled negatives."""

    name: Literal["retrieval"] = "retrieval"
    ranking: RankingConfig = RankingConfig()
    """The loss."""
    head: str = "itm"
    """Name of the matching head; that of the pre-trained model's matching objective goes on from its weights."""
    negative_images: int = Field(1, ge=0)
    """Mismatched images per matched pair."""
    negative_texts: int = Field(1, ge=0)
    """Mismatched texts per matched pair."""
    judged_images: int = Field(1000, ge=1)
    """Images of the validation set that are ranked, with all their texts (the first ones in index order)."""

    @model_validator(mode="after")
    def _rankable(self) -> Self:
        check_name(self.head)
        if self.negative_images + self.negative_texts == 0:
            raise ValueError("negative_images and negative_texts are both 0, so there is nothing to rank above")
        return self


class RetrievalTask(Task):
    """Groups of a matched pair and its negatives; evaluation ranks all pairs of some images and their texts."""

    def __init__(self, config: RetrievalConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.config = config
        self.objective = Ranking(config.head, config.ranking, 1 + config.negative_images + config.negative_texts)
        self.objectives = {config.head: self.objective}

    @property
    def weights(self) -> dict[str, float]:
        return {self.config.head: self.config.ranking.weight}

    def pairs(self, slot: Slot, block: Block, rng: np.random.Generator) -> tuple[Pair, ...]:
        sample = int(block.sample_E[slot.example])
        matched = Pair(sample, slot.example)
        images = [other_sample(sample, block, rng) for _ in range(self.config.negative_images)]
        texts = [other_text(sample, block, rng) for _ in range(self.config.negative_texts)]
        if None in images or None in texts:
            return (matched,) * self.objective.group  # no negatives to be had: nothing to rank, so only noise to learn
        return (
            matched,
            *(Pair(image, slot.example, matched=False) for image in images if image is not None),
            *(Pair(sample, text, matched=False) for text in texts if text is not None),
        )

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: np.random.Generator, step: int
    ) -> Example:
        example = self.bare_example(image, self.text_of(text, text_number), pair.matched)
        example.targets[self.config.head] = self.objective.target()
        return example

    def evaluate(self, judge: Judge) -> dict[str, float]:
        """Recall@1, 5, 10 both ways over all pairs of the judged images and their texts."""
        candidates = self._candidates(judge)
        scores_IT = self._scored(judge, candidates)
        if scores_IT is None:
            return {}
        image_T = torch.tensor(candidates.image_T)
        matches_IT = torch.arange(len(candidates.images))[:, None] == image_T[None, :]
        metrics = {"images": float(len(candidates.images)), "texts": float(len(image_T))}
        if candidates.unreadable:
            metrics["unreadable_images"] = float(len(candidates.unreadable))
        for k in (1, 5, 10):
            metrics[f"image_to_text_recall@{k}"] = recall_at_k(scores_IT, matches_IT, k)
            metrics[f"text_to_image_recall@{k}"] = recall_at_k(scores_IT.T, matches_IT.T, k)
        return metrics

    def _candidates(self, judge: Judge) -> _Candidates:
        """The judged images (as bare examples) and their texts, read from the shards."""
        found = _Candidates([], [], [], [])
        most = min(self.config.judged_images, judge.limit or self.config.judged_images)
        for shard, entry in enumerate(judge.dataset.index.manifest.shards):
            for row in range(entry.samples):
                if len(found.images) == most:
                    return found
                try:
                    sample = judge.dataset.read(
                        shard, row, image=self.wants_image, regions=self.wants_regions, texts=True
                    )
                    self.images.prepare(sample)
                except (BadSample, Fault):
                    found.unreadable.append(row)
                    continue
                if texts := self.texts_of(sample):
                    found.texts.extend(texts)
                    found.image_T.extend([len(found.images)] * len(texts))
                    found.images.append(sample)
        if not found.images:
            raise DataError(
                f"{judge.dataset.index.directory}: no image with {self.texts} can be read, so none is ranked"
            )
        return found

    def _scored(self, judge: Judge, candidates: _Candidates) -> Tensor | None:
        """Scores of all pairs, [I, T], on rank 0; None elsewhere. Each rank takes every so-many-th pair."""
        pairs = [(i, t) for i in range(len(candidates.images)) for t in range(len(candidates.texts))]
        own = pairs[judge.world.rank :: judge.world.size]
        longest = -(-len(pairs) // judge.world.size)
        scores: list[float] = []
        for chunk in _chunks(longest, self._pairs_per_batch(judge, candidates)):
            groups = [[self._pair(candidates, *own[number])] for number in chunk if number < len(own)]
            scores += judge.run(self.collate(groups, 0), self._match_scores)
        gathered = judge.gathered(scores)
        if not judge.world.is_main:
            return None
        order = [pair for rank in range(judge.world.size) for pair in pairs[rank :: judge.world.size]]
        scores_IT = torch.empty(len(candidates.images), len(candidates.texts))
        for (i, t), score in zip(order, gathered, strict=True):
            scores_IT[i, t] = score
        return scores_IT

    def _pairs_per_batch(self, judge: Judge, candidates: _Candidates) -> int:
        """So many pairs fit the token budget even if all were as long as the longest."""
        tokens = max((self.image_tokens(len(s.regions) if s.regions else 0) for s in candidates.images), default=0)
        tokens += max(self.setting.text.count(candidates.texts), default=0)
        return max(1, judge.micro_tokens // max(1, tokens))

    def _pair(self, candidates: _Candidates, i: int, t: int) -> Example:
        example = self.bare_example(candidates.images[i], candidates.texts[t], candidates.image_T[t] == i)
        example.targets[self.config.head] = self.objective.target()
        return example

    def _match_scores(self, module: TaskModule, batch: Batch) -> list[float]:
        scores: list[float] = match_score(module.scores(batch, self.config.head)).tolist()
        return scores


@dataclass(frozen=True)
class _Candidates:
    images: list[Sample]
    texts: list[str]
    image_T: list[int]
    """Which image each text belongs to."""
    unreadable: list[int]


def _chunks(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(total, start + size))
