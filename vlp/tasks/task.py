"""What all tasks share: how a pair of samples becomes an example, and how examples become a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

from torch import nn

from vlp.config import Config
from vlp.data.batch import TargetForm, collate
from vlp.data.index import Block, Texts
from vlp.data.text import TextEncoder
from vlp.models.heads import HeadConfig
from vlp.models.image import images_of
from vlp.models.model import ModelConfig
from vlp.objectives.objective import Objective
from vlp.objectives.read import rows_read
from vlp.seeds import Draw
from vlp.tasks.judge import Judge
from vlp.tasks.outcomes import Judgement
from vlp.types import Asked, Batch, Example, Pair, Question, Sample, Slot

Without = Literal["image", "text"]


class TaskConfig(Config):
    """What every task's config has."""

    texts: Texts = "captions"
    """Which texts of a sample make examples."""

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """What the classes of its heads stand for, by the head's name; none where they mean the same in every run."""
        return {}


@dataclass(frozen=True)
class Setting:
    """What a task is built upon."""

    model: ModelConfig
    """With sizes filled in; its heads are not looked at."""
    text: TextEncoder
    seed: int
    without: Without | None = None
    """A modality that examples lack, to measure what the other can do alone."""


class Task(ABC):
    """A task over packed (image, text) pairs. Implements `vlp.data.loader.Preparer`.

    Its objectives' names are the keys of losses, targets and the model's heads.
    """

    objectives: Mapping[str, Objective]
    samples_tokens: ClassVar[bool] = False
    """Whether it takes random tokens of an image where the model's source says so (`sample`)."""

    def __init__(self, config: TaskConfig, setting: Setting) -> None:
        self.texts: Texts = config.texts
        self.setting = setting
        self.images = images_of(setting.model.image, sampled=self.samples_tokens)

    # ---------------------------------------------------------------------------------- what the engine asks

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each objective in the loss."""
        return dict.fromkeys(self.objectives, 1.0)

    @cached_property
    def forms(self) -> dict[str, TargetForm]:
        """What each objective's targets look like."""
        return {name: objective.form() for name, objective in self.objectives.items()}

    @property
    def heads(self) -> dict[str, HeadConfig]:
        """The heads that the model must have."""
        heads = {name: objective.head() for name, objective in self.objectives.items()}
        return {name: head for name, head in heads.items() if head is not None}

    @abstractmethod
    def evaluate(self, judge: Judge) -> dict[str, float]:
        """Metrics on a dataset; complete on rank 0, and called by all ranks together."""

    def judged(self, judge: Judge) -> Judgement:
        """Metrics, and what became of each example where the task can tell; likewise."""
        return Judgement(self.evaluate(judge))

    # ---------------------------------------------------------------------------------- what the loader asks

    @property
    def wants_image(self) -> bool:
        return self.images.wants_image and self.setting.without != "image"

    @property
    def wants_regions(self) -> bool:
        return self.images.wants_regions and self.setting.without != "image"

    @property
    def draws_pairs(self) -> bool:
        """Whether slots have other pairs than their own; a task that overrides `pairs` says so."""
        return False

    def image_tokens(self, regions: int) -> int:
        """Tokens of an image of so many regions."""
        return self.images.form.framed(0) if self.setting.without == "image" else self.images.tokens(regions)

    def pairs(self, slot: Slot, block: Block, rng: Draw) -> tuple[Pair, ...]:
        """The example's own image and text; tasks with negatives say otherwise."""
        return (Pair(int(block.sample_E[slot.example]), slot.example),)

    def shown(self, image: Sample, rng: Draw) -> Sample:
        """The sample with its image as the model takes it, if that must be decoded. Regions need not: they are made
        with the example."""
        if self.setting.without == "image" or not self.wants_image:
            return image
        return replace(image, shown=self.images.prepare(image, rng))

    @abstractmethod
    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: Draw, step: int
    ) -> Example:
        """One pair with its targets."""

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        return self.narrowed(self.batch_of([example for group in examples for example in group]))

    def batch_of(self, examples: Sequence[Example], asked: Mapping[str, Asked] | None = None) -> Batch:
        """A batch of examples that hold their targets, or of which all is asked at once."""
        batch = collate(examples, self.images.form, self.forms, asked)
        self.images.batch_ends()
        return batch

    def narrowed(self, batch: Batch, active: Iterable[str] | None = None) -> Batch:
        """The batch, for which the model's last block works out no more than objectives and pooler read.

        Args:
            active: the objectives that have a target in its step; all that there are by default.
        """
        objectives = [self.objectives[name] for name in (self.objectives if active is None else active)]
        return replace(batch, read=rows_read(batch, objectives, self.setting.model.pooler))

    # -------------------------------------------------------------------------------------------- for subclasses

    def bare_example(
        self,
        image: Sample,
        text: str,
        matched: bool = True,
        rng: Draw | None = None,
        second: str | None = None,
    ) -> Example:
        """A pair without targets; a task that samples image tokens gives what draws them.

        Args:
            second: a text that follows the first.
        """
        without, segment_T = self.setting.without, None
        if second is None or without == "text":
            tokens_T, special_T, word_T = self.setting.text.encode("" if without == "text" else text)
        else:
            tokens_T, special_T, word_T, segment_T = self.setting.text.encode_two(text, second)
        prepared = image.shown
        if prepared is None and without != "image":
            prepared = self.images.prepare(image, rng)
        return Example("", tokens_T, special_T, word_T, prepared, matched, segment_T=segment_T)

    def prompted(self, example: Example) -> Example:
        """A pair as an application gives it, with the tokens that this task puts beside its text."""
        return example

    def texts_of(self, sample: Sample) -> tuple[str, ...]:
        """The texts of a sample that make examples, in the order of their numbers."""
        captions = sample.captions if self.texts != "questions" else ()
        questions = sample.questions if self.texts != "captions" else ()
        return (*captions, *(question.text for question in questions))

    def question_of(self, sample: Sample, number: int) -> Question | None:
        """The question that a text of a sample is, by its number among `texts`; None for a caption."""
        number -= len(sample.captions) if self.texts != "questions" else 0
        return sample.questions[number] if number >= 0 else None

    def text_of(self, sample: Sample, number: int) -> str:
        """A text of a sample by its number among `texts`."""
        return self.texts_of(sample)[number]


def check_name(name: str) -> str:
    """A name that an objective and its head can have.

    Raises:
        ValueError: torch could keep no module of that name among the heads.
    """
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"'{name}' cannot name an objective; take letters, digits and _ that are no word of torch's")
    return name
