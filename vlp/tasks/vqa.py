"""Visual question answering as a choice from an answer vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from vlp.data.batch import WEIGHT
from vlp.metrics.vqa import commonest, normalise, soft_scores
from vlp.objectives.answer import Answer, AnswerConfig
from vlp.seeds import Draw
from vlp.tasks.judge import Judge
from vlp.tasks.outcomes import Judgement, Outcome, looked_up, place_of
from vlp.tasks.task import Setting, Task, TaskConfig
from vlp.types import Batch, Example, Pair, Sample, Slot

if TYPE_CHECKING:
    from vlp.tasks.module import TaskModule

ANSWER = "answer"
ACCURACY = "vqa_accuracy"


class VqaConfig(TaskConfig):
    """Fine-tuning on questions with answers.

    The answer is read from the model's pooled vector, and the model's pooler says from where: `model.pooler.at: first`
    is [CLS], `fusion: product` fuses both streams, `at: mask` reads a [MASK] that the task puts behind the question.
    """

    name: Literal["vqa"] = "vqa"
    texts: Literal["questions"] = "questions"
    """Which texts of a sample make examples."""
    answer: AnswerConfig = AnswerConfig()
    """The loss."""
    min_count: int = Field(1, ge=1)
    """An answer enters the vocabulary if it is the commonest of so many training questions (9 is usual for VQA v2)."""
    answers: tuple[str, ...] | Literal["auto"] = "auto"
    """The answer vocabulary; `auto` takes it from the training shards, and the resolved config holds it."""

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        return {} if self.answers == "auto" else {ANSWER: self.answers}


@dataclass(frozen=True)
class Prediction:
    """The answer to one question; `score` is None where the split has no answers."""

    example_id: str
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
        self.masked = setting.model.pooler.at == "mask"

    @property
    def weights(self) -> dict[str, float]:
        return {ANSWER: self.config.answer.weight}

    def image_tokens(self, regions: int) -> int:
        """Tokens of an image of so many regions, and the [MASK] that the index does not count."""
        return super().image_tokens(regions) + int(self.masked)

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: Draw, step: int
    ) -> Example:
        question = text.questions[text_number]
        example = self.prompted(self.bare_example(image, question.text))
        scores = soft_scores([normalise(answer) for answer in question.answers])
        known = {self.numbers[answer]: score for answer, score in scores.items() if answer in self.numbers}
        example.targets[ANSWER] = self.objective.target(known, answered=bool(scores))
        return example

    def prompted(self, example: Example) -> Example:
        """[CLS] question [MASK] [SEP] where the answer is read from a mask; a question that fills the text gives its
        last token for it."""
        if not self.masked:
            return example
        text = self.setting.text
        kept = min(len(example.token_ids_T) - 1, text.max_length - 2)
        return replace(
            example,
            token_ids_T=np.array([*example.token_ids_T[:kept], text.mask_id, text.sep_id], np.int64),
            special_T=np.array([*example.special_T[:kept], True, True]),
            word_T=np.array([*example.word_T[:kept], -1, -1], np.int64),
        )

    def evaluate(self, judge: Judge) -> dict[str, float]:
        """`vqa_accuracy` over all questions with answers; an answer outside the vocabulary cannot be right."""
        return _metrics([p.score for p in self.predictions(judge)])

    def judged(self, judge: Judge) -> Judgement:
        """The same, with each question's outcome."""
        own = self._predicted(judge)
        found = looked_up(judge.dataset, [prediction.example_id for prediction in own])
        outcomes = judge.gathered([_outcome(prediction, *found[prediction.example_id]) for prediction in own])
        metrics = _metrics([outcome.scores.get(ACCURACY) for outcome in outcomes])
        return Judgement(metrics, outcomes, self._notes(outcomes))

    def predictions(self, judge: Judge) -> list[Prediction]:
        """The answers of all ranks' questions, in index order, on rank 0; empty elsewhere."""
        return judge.gathered(self._predicted(judge))

    def _predicted(self, judge: Judge) -> list[Prediction]:
        """The answers to this rank's questions."""
        assert isinstance(self.config.answers, tuple)
        own = []
        for step in judge.batches(self):
            for batch in step.micro_batches:
                best_B = judge.run(batch, _best)
                score_BA, answered_B = batch.targets[ANSWER].values["score"], batch.targets[ANSWER].values[WEIGHT]
                for row, (id, best) in enumerate(zip(batch.ids, best_B, strict=True)):
                    score = float(score_BA[row, best]) if answered_B[row] else None
                    own.append(Prediction(id, self.config.answers[best], score))
        return own

    def _notes(self, outcomes: list[Outcome]) -> tuple[str, ...]:
        answered = [outcome for outcome in outcomes if outcome.wanted]
        if outcomes and not answered:
            return ("the questions have no answers, so there is no score",)
        outside = sum(all(answer not in self.numbers for answer in outcome.wanted) for outcome in answered)
        if not outside:
            return ()
        return (
            f"{outside} of {len(answered)} questions have no answer among the {len(self.numbers)} that the model "
            "chooses from, and count as wrong",
        )


def _metrics(scores: list[float | None]) -> dict[str, float]:
    known = [score for score in scores if score is not None]
    return {ACCURACY: sum(known) / len(known), "questions": float(len(known))} if known else {}


def _outcome(prediction: Prediction, sample: Sample, number: int) -> Outcome:
    question = sample.questions[number]
    answers = [normalise(answer) for answer in question.answers]
    first = commonest(answers)
    return Outcome(
        id=question.id or prediction.example_id,
        place=place_of(prediction.example_id),
        asked=question.text,
        said=prediction.answer,
        wanted=() if first is None else (first, *sorted(set(answers) - {first})),
        scores={} if prediction.score is None else {ACCURACY: prediction.score},
        types=question.types,
    )


def _best(module: TaskModule, batch: Batch) -> list[int]:
    best: list[int] = module.scores(batch, ANSWER).argmax(-1).tolist()
    return best
