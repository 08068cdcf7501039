"""Image-text classification: one label for each image with its text. The smallest example of a task; `docs/finetune.md`
walks through it.

A pair's text is a question in the shards, and its label the answer: `vlp-data csv --question TEXT --answer LABEL`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from vlp.data.dataset import Dataset
from vlp.errors import DataError
from vlp.metrics.classes import macro_f1
from vlp.objectives.label import Label, LabelConfig
from vlp.seeds import Draw
from vlp.tasks.judge import Judge
from vlp.tasks.outcomes import Judgement, Outcome, looked_up, means, place_of
from vlp.tasks.task import Setting, Task, TaskConfig
from vlp.tasks.vocabulary import questions_of
from vlp.types import Batch, Example, Pair, Question, Sample, Slot

if TYPE_CHECKING:
    from vlp.tasks.module import TaskModule

LABEL = "label"


class ClassifyConfig(TaskConfig):
    """Fine-tuning on labels of one's own."""

    name: Literal["classify"] = "classify"
    texts: Literal["questions"] = "questions"
    """Which texts of a sample make examples: those that can have an answer."""
    label: LabelConfig = LabelConfig()
    """The loss."""
    labels: tuple[str, ...] | Literal["auto"] = "auto"
    """All labels; `auto` takes them from the training shards, and the resolved config holds them."""

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        return {} if self.labels == "auto" else {LABEL: self.labels}


class ClassifyTask(Task):
    """Images with texts in, labels out."""

    def __init__(self, config: ClassifyConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        assert config.labels != "auto", "the labels are filled in by `labels_of`"
        self.config = config
        self.numbers = {label: number for number, label in enumerate(config.labels)}
        self.objective = Label(LABEL, config.label, len(config.labels))
        self.objectives = {LABEL: self.objective}

    @property
    def weights(self) -> dict[str, float]:
        return {LABEL: self.config.label.weight}

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: Draw, step: int
    ) -> Example:
        question = text.questions[text_number]
        example = self.bare_example(image, question.text)
        label = _label(question)
        if label in self.numbers:  # one without a label, or with one that training never saw, teaches nothing
            example.targets[LABEL] = self.objective.target(self.numbers[label])
        return example

    def evaluate(self, judge: Judge) -> dict[str, float]:
        """`accuracy` and `macro_f1` over the pairs that have a label."""
        return self.judged(judge).metrics

    def judged(self, judge: Judge) -> Judgement:
        """The same, with the outcome of each pair."""
        assert isinstance(self.config.labels, tuple)
        said: dict[str, str] = {}
        for step in judge.batches(self):
            for batch in step.micro_batches:
                for id, best in zip(batch.ids, judge.run(batch, _best), strict=True):
                    said[id] = self.config.labels[best]
        found = looked_up(judge.dataset, said)
        outcomes = judge.gathered([_outcome(id, said[id], *found[id]) for id in said])
        return Judgement(_metrics(outcomes), outcomes, self._notes(outcomes))

    def _notes(self, outcomes: list[Outcome]) -> tuple[str, ...]:
        true = [outcome.wanted[0] for outcome in outcomes if outcome.wanted]
        if outcomes and not true:
            return ("the pairs have no labels, so there is no score",)
        unknown = sorted(set(true) - set(self.numbers))
        return (f"training never saw the label '{unknown[0]}', so it is never said",) if unknown else ()


def labels_of(datasets: Iterable[Dataset]) -> tuple[str, ...]:
    """The labels of some datasets, in the order of the alphabet.

    Raises:
        DataError: there are fewer than two.
    """
    counts = Counter(_label(question) for dataset in datasets for question in questions_of(dataset))
    labels = sorted(label for label in counts if label is not None)
    if len(labels) < 2:
        raise DataError(
            f"data.train: has {len(labels)} labels where a choice needs two; a label is the answer to a question "
            "(`vlp-data csv --question TEXT --answer LABEL`)"
        )
    return tuple(labels)


def _label(question: Question) -> str | None:
    return question.answers[0] if question.answers else None


def _best(module: TaskModule, batch: Batch) -> list[int]:
    pooled_BH = module.model(batch).pooled_BH  # of all pairs, also those without a target
    best: list[int] = module.model.heads[LABEL](pooled_BH).float().argmax(-1).tolist()
    return best


def _outcome(id: str, said: str, sample: Sample, number: int) -> Outcome:
    question = sample.questions[number]
    label = _label(question)
    return Outcome(
        id=question.id or id,
        place=place_of(id),
        asked=question.text,
        said=said,
        wanted=() if label is None else (label,),
        scores={} if label is None else {"accuracy": float(said == label)},
        types=question.types,
    )


def _metrics(outcomes: list[Outcome]) -> dict[str, float]:
    labelled = [outcome for outcome in outcomes if outcome.wanted]
    if not labelled:
        return {}
    f1 = macro_f1([outcome.said for outcome in labelled], [outcome.wanted[0] for outcome in labelled])
    return means(labelled) | {"macro_f1": f1, "examples": float(len(labelled))}
