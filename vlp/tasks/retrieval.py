"""Image-text retrieval: by a cross-encoder that looks at each pair, by a dual encoder that compares vectors, or by
both, where the dual encoder's shortlist is ranked again by the cross-encoder.

Shape suffixes: I images, T texts, Q queries, C candidates.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.data.index import Block
from vlp.metrics.recall import median_rank, ranks_of_matches
from vlp.metrics.shortlist import best, reranked
from vlp.models.halves import separable
from vlp.objectives.itc import Contrast, ContrastConfig, image_number
from vlp.objectives.itm import other_sample, other_text
from vlp.objectives.objective import Objective
from vlp.objectives.ranking import Ranking, RankingConfig
from vlp.seeds import Draw
from vlp.tasks.candidates import Candidates, check_folds, find_candidates
from vlp.tasks.judge import Judge
from vlp.tasks.outcomes import Judgement, Outcome, means
from vlp.tasks.scoring import Scorer
from vlp.tasks.task import Setting, Task, TaskConfig, check_name
from vlp.types import Example, Pair, Sample, Slot

CONTRAST = "itc"
KS = (1, 5, 10)
Way = Literal["image_to_text", "text_to_image"]


class RetrievalConfig(TaskConfig):
    """Fine-tuning to find the text of an image and the image of a text."""

    name: Literal["retrieval"] = "retrieval"
    ranking: RankingConfig | None = RankingConfig()
    """The cross-encoder's loss; null trains and judges a dual encoder alone."""
    head: str = "itm"
    """Name of the matching head; that of the pre-trained model's matching objective goes on from its weights."""
    negative_images: int = Field(1, ge=0)
    """Mismatched images per matched pair."""
    negative_texts: int = Field(1, ge=0)
    """Mismatched texts per matched pair."""
    contrast: ContrastConfig | None = None
    """The dual encoder's loss over the matched pairs of the global batch; null for a cross-encoder alone."""
    judged_images: int = Field(1000, ge=1)
    """Images of the validation set that are ranked, with all their texts (the first ones in index order)."""
    folds: int = Field(1, ge=1)
    """Parts of the judged images within which is ranked; results are means over them. COCO's 1k protocol is 5000 images
    in 5 folds, its 5k protocol 5000 in one."""
    shortlist: int = Field(50, ge=1)
    """With both encoders: candidates of each query that the dual encoder leaves to the cross-encoder."""

    @model_validator(mode="after")
    def _rankable(self) -> Self:
        check_name(self.head)
        if self.ranking is None and self.contrast is None:
            raise ValueError("ranking and contrast are both null, so there is nothing to learn")
        if self.ranking is not None and self.negative_images + self.negative_texts == 0:
            raise ValueError("negative_images and negative_texts are both 0, so there is nothing to rank above")
        if self.head == CONTRAST:
            raise ValueError(f"head: {CONTRAST} is the name of the dual encoder's; take another")
        return self


class RetrievalTask(Task):
    """Groups of a matched pair and its negatives; evaluation ranks some images and their texts."""

    def __init__(self, config: RetrievalConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.config = config
        self.apart = separable(setting.model)
        group = 1 + config.negative_images + config.negative_texts
        self.ranking = None if config.ranking is None else Ranking(config.head, config.ranking, group)
        contrast = config.contrast
        self.contrast = None if contrast is None else Contrast(CONTRAST, contrast, setting.model, "task.contrast")
        made: list[Objective] = [each for each in (self.ranking, self.contrast) if each is not None]
        self.objectives = {objective.name: objective for objective in made}

    @property
    def weights(self) -> dict[str, float]:
        given = {self.config.head: self.config.ranking, CONTRAST: self.config.contrast}
        return {name: config.weight for name, config in given.items() if config is not None}

    @property
    def draws_pairs(self) -> bool:
        return True

    def pairs(self, slot: Slot, block: Block, rng: Draw) -> tuple[Pair, ...]:
        sample = int(block.sample_E[slot.example])
        matched = Pair(sample, slot.example)
        return (matched, *(self._negatives(matched, block, rng) if self.ranking else ()))

    def _negatives(self, matched: Pair, block: Block, rng: Draw) -> list[Pair]:
        images = [other_sample(matched.image, block, rng) for _ in range(self.config.negative_images)]
        texts = [other_text(matched.image, block, rng) for _ in range(self.config.negative_texts)]
        if None in images or None in texts:
            # No negatives to be had: nothing to rank, so only noise to learn.
            return [matched] * (self.config.negative_images + self.config.negative_texts)
        return [
            *(Pair(image, matched.text, matched=False) for image in images if image is not None),
            *(Pair(matched.image, text, matched=False) for text in texts if text is not None),
        ]

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: Draw, step: int
    ) -> Example:
        example = self.bare_example(image, self.text_of(text, text_number), pair.matched)
        if self.ranking:
            example.targets[self.ranking.name] = self.ranking.target()
        if self.contrast and pair.matched:
            number = image_number(slot.dataset, image.key)
            example.targets[self.contrast.name] = self.contrast.target_of(slot.index, number)
        return example

    # --------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, judge: Judge) -> dict[str, float]:
        """Recall@1, 5, 10, median and mean rank both ways, over all pairs of the judged images and their texts."""
        return self._judged(judge, outcomes=False).metrics

    def judged(self, judge: Judge) -> Judgement:
        """The same, with the outcome of each query."""
        return self._judged(judge, outcomes=True)

    def _judged(self, judge: Judge, *, outcomes: bool) -> Judgement:
        most = min(self.config.judged_images, judge.limit or self.config.judged_images)
        found = find_candidates(self, judge.dataset, most)
        queries: list[Outcome] = []
        medians: dict[str, list[float]] = {}
        for part in check_folds(found, self.config.folds, judge.dataset.directory):
            for way, scores_QC in self._scores(judge, part).items():
                ranks_Q = _ranks(scores_QC, part.matches() if way == "image_to_text" else part.matches().T)
                medians.setdefault(f"{way}_median_rank", []).append(median_rank(torch.from_numpy(ranks_Q)))
                queries += _outcomes(way, part, ranks_Q, scores_QC)
        if not judge.world.is_main:
            return Judgement({})
        metrics = {"images": float(len(found)), "texts": float(len(found.texts))}
        if found.unreadable:
            metrics["unreadable_images"] = float(found.unreadable)
        metrics |= means(queries) | {name: float(np.mean(values)) for name, values in medians.items()}
        return Judgement(metrics, queries if outcomes else (), _notes(found, self))

    def _scores(self, judge: Judge, candidates: Candidates) -> dict[Way, NDArray[np.float32]]:
        """Scores of each query's candidates, both ways, on rank 0; empty elsewhere."""
        scorer = Scorer(self, judge, candidates, apart=self.apart)
        cheap_IT = scorer.similarities(self.contrast) if self.contrast else None
        if self.ranking is None:
            assert cheap_IT is not None
            return _both(cheap_IT, cheap_IT) if judge.world.is_main else {}
        if cheap_IT is None:
            everything = np.arange(len(candidates.texts))
            dear_IT = scorer.matches(self.ranking, [everything] * len(candidates))
            return {} if dear_IT is None else _both(dear_IT, dear_IT)
        by_image_IT, by_text_IT = best(cheap_IT, self.config.shortlist), best(cheap_IT.T, self.config.shortlist).T
        dear_IT = scorer.matches(self.ranking, [np.flatnonzero(row) for row in by_image_IT | by_text_IT])
        if dear_IT is None:
            return {}
        return _both(reranked(cheap_IT, dear_IT, by_image_IT), reranked(cheap_IT, dear_IT, by_text_IT))


def _both(
    image_to_text_IT: NDArray[np.float32], text_to_image_IT: NDArray[np.float32]
) -> dict[Way, NDArray[np.float32]]:
    return {"image_to_text": image_to_text_IT, "text_to_image": text_to_image_IT.T}


def _ranks(scores_QC: NDArray[np.float32], matches_QC: NDArray[np.bool_]) -> NDArray[np.int64]:
    ranks_Q: NDArray[np.int64] = ranks_of_matches(
        torch.from_numpy(np.ascontiguousarray(scores_QC)), torch.from_numpy(np.ascontiguousarray(matches_QC))
    ).numpy()
    return ranks_Q


def _outcomes(
    way: Way, candidates: Candidates, ranks_Q: NDArray[np.int64], scores_QC: NDArray[np.float32]
) -> list[Outcome]:
    """What became of each query."""
    found = []
    first_Q = scores_QC.argmax(axis=1)
    of_image: dict[int, list[str]] = {}
    for text, image in zip(candidates.texts, candidates.image_T, strict=True):
        of_image.setdefault(image, []).append(text)
    for query, (rank, first) in enumerate(zip(ranks_Q.tolist(), first_Q.tolist(), strict=True)):
        scores = {f"{way}_recall@{k}": float(rank <= k) for k in KS} | {f"{way}_mean_rank": float(rank)}
        image = query if way == "image_to_text" else candidates.image_T[query]
        place = candidates.places[image]
        asked, said, wanted = (
            (place, candidates.texts[first], tuple(of_image[image]))
            if way == "image_to_text"
            else (candidates.texts[query], candidates.places[first], (place,))
        )
        found.append(Outcome(f"{way}/{query}", place, asked, said, wanted, scores))
    return found


def _notes(candidates: Candidates, task: RetrievalTask) -> tuple[str, ...]:
    notes = []
    if candidates.without_texts:
        notes.append(f"{candidates.without_texts} images without {task.texts} were left out: nothing belongs to them")
    if candidates.unreadable:
        notes.append(f"{candidates.unreadable} images cannot be read and were left out")
    return tuple(notes)
