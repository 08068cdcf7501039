"""Visual question answering as a choice from an answer vocabulary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from vlp.data.batch import WEIGHT
from vlp.data.dataset import Dataset
from vlp.data.shards import BadSample
from vlp.errors import DataError
from vlp.metrics.vqa import normalise, soft_scores
from vlp.objectives.answer import Answer, AnswerConfig
from vlp.tasks.judge import Judge
from vlp.tasks.task import Setting, Task, TaskConfig
from vlp.types import Batch, Example, Pair, Question, Sample, Slot

if TYPE_CHECKING:
    from vlp.tasks.module import TaskModule

ANSWER = "answer"


class VqaConfig(TaskConfig):
    """Fine-tuning on questions with answers."""

    name: Literal["vqa"] = "vqa"
    texts: Literal["questions"] = "questions"
    """Which texts of a sample make examples."""
    answer: AnswerConfig = AnswerConfig()
    """The loss."""
    min_count: int = Field(1, ge=1)
    """An answer enters the vocabulary if it is given to so many training questions (9 is usual for VQA v2)."""
    answers: tuple[str, ...] | Literal["auto"] = "auto"
    """The answer vocabulary; `auto` takes it from the training shards, and the resolved config holds it."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one question; `score` is None where the split has no answers."""

    question_id: str
    answer: str
    score: float | None


class VqaTask(Task):
    """Questions in, answers out."""

    def __init__(self, config: VqaConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        assert config.answers != "auto", "the vocabulary is filled in by `answer_vocabulary`"
        self.config = config
        self.numbers = {answer: number for number, answer in enumerate(config.answers)}
        self.objective = Answer(ANSWER, config.answer, len(config.answers))
        self.objectives = {ANSWER: self.objective}

    @property
    def weights(self) -> dict[str, float]:
        return {ANSWER: self.config.answer.weight}

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: np.random.Generator, step: int
    ) -> Example:
        question = text.questions[text_number]
        example = self.bare_example(image, question.text)
        example.id = question.id
        scores = soft_scores([normalise(answer) for answer in question.answers])
        known = {self.numbers[answer]: score for answer, score in scores.items() if answer in self.numbers}
        example.targets[ANSWER] = self.objective.target(known, answered=bool(scores))
        return example

    def evaluate(self, judge: Judge) -> dict[str, float]:
        """`vqa_accuracy` over all questions with answers; an answer outside the vocabulary cannot be right."""
        scored = [p.score for p in self.predictions(judge) if p.score is not None]
        return {"vqa_accuracy": sum(scored) / len(scored), "questions": float(len(scored))} if scored else {}

    def predictions(self, judge: Judge) -> list[Prediction]:
        """The answers of all ranks' questions, in index order, on rank 0; empty elsewhere."""
        assert isinstance(self.config.answers, tuple)
        own = []
        for step in judge.batches(self):
            for batch in step.micro_batches:
                best_B = judge.run(batch, _best)
                score_BA, answered_B = batch.targets[ANSWER].values["score"], batch.targets[ANSWER].values[WEIGHT]
                for row, (id, best) in enumerate(zip(batch.ids, best_B, strict=True)):
                    score = float(score_BA[row, best]) if answered_B[row] else None
                    own.append(Prediction(id, self.config.answers[best], score))
        return judge.gathered(own)


def _best(module: TaskModule, batch: Batch) -> list[int]:
    best: list[int] = module.scores(batch, ANSWER).argmax(-1).tolist()
    return best


def answer_vocabulary(datasets: Iterable[Dataset], min_count: int) -> tuple[str, ...]:
    """Normalised answers that occur for at least `min_count` questions, most frequent first.

    Raises:
        DataError: no question has an answer.
    """
    counts: Counter[str] = Counter()
    for dataset in datasets:
        for question in _questions(dataset):
            counts.update({normalise(answer) for answer in question.answers} - {""})
    kept = [
        answer for answer, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= min_count
    ]
    if not kept:
        raise DataError(
            f"data.train: no answer occurs for {min_count} questions; lower task.min_count, or import questions with "
            "answers"
        )
    return tuple(kept)


def _questions(dataset: Dataset) -> Iterator[Question]:
    for shard, entry in enumerate(dataset.index.manifest.shards):
        for row in range(entry.samples):
            try:
                yield from dataset.read(shard, row, image=False, regions=False, texts=True).questions
            except BadSample:  # the loader will meet it again, replace it and record it
                continue
