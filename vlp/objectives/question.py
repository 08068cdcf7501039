"""Image question answering as a pre-training task: the text of a matched pair is a question, and its answer is chosen
from a vocabulary. Source: Tan and Bansal 2019 (arXiv 1908.07490), section 3.1.3.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from vlp.metrics.vqa import normalise, soft_scores
from vlp.models.heads import HeadConfig
from vlp.objectives.answer import Answer, AnswerConfig
from vlp.objectives.objective import Facts, Hidden, SelfSupervised, SelfSupervisedConfig
from vlp.seeds import Draw
from vlp.types import Rows, Target, Targets


class QuestionAnsweringConfig(SelfSupervisedConfig):
    """Settings of question answering."""

    kind: Literal["question_answering"] = "question_answering"
    loss: Literal["bce", "kl", "cross_entropy"] = "cross_entropy"
    """Cross entropy with the normalised scores: what drawing one answer by its score, as the authors do, is on average;
    or binary cross entropy summed over answers; or divergence."""
    min_count: int = Field(1, ge=1)
    """An answer enters the vocabulary if it is the commonest of so many training questions."""
    most: int | None = Field(None, ge=1)
    """Keep only so many answers, the most frequent ones; null for all. 9500 in the paper."""
    answers: tuple[str, ...] | Literal["auto"] = "auto"
    """The answer vocabulary; `auto` takes it from the training shards, and the resolved config holds it."""


class QuestionAnswering(SelfSupervised):
    """Guess the answer of a question from the pooled vector. Captions, and questions none of whose answers is in the
    vocabulary, have no target."""

    rows: Rows = "example"
    pairs = "matched"

    def __init__(self, name: str, config: QuestionAnsweringConfig, facts: Facts) -> None:
        super().__init__(name)
        assert config.answers != "auto", "the vocabulary is filled in when a run is assembled"
        self.config = config
        self.numbers = {answer: number for number, answer in enumerate(config.answers)}
        self._answer = Answer(name, AnswerConfig(loss=config.loss), len(config.answers))

    def head(self) -> HeadConfig:
        return self._answer.head()

    def empty(self) -> Target:
        return self._answer.empty()

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        if hidden.question is None:
            return self.empty()
        scores = soft_scores([normalise(answer) for answer in hidden.question.answers])
        known = {self.numbers[answer]: score for answer, score in scores.items() if answer in self.numbers}
        return self._answer.target(known) if any(known.values()) else self.empty()

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        return self._answer.loss(scores_K, targets)
