"""What an objective is: a data side that runs in loader workers, and a loss side that runs on the model's states.

Every loss is a sum over targets; what it is divided by (`Targets.count`) is known from the data, so that it can be
summed over micro-batches and ranks before the first forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config import Config
from vlp.data.batch import WEIGHT, TargetForm, asked_of
from vlp.data.text import TextEncoder
from vlp.models.heads import HeadConfig
from vlp.models.model import ModelConfig
from vlp.seeds import Draw, Draws
from vlp.types import Asked, Batch, Encoded, Example, Question, Rows, Stream, Target, Targets


class ObjectiveConfig(Config):
    """What every objective has."""

    weight: float = Field(1.0, ge=0)
    """Factor of this objective's loss in the step's."""


class SelfSupervisedConfig(ObjectiveConfig):
    """What every self-supervised objective has."""

    ratio: float = Field(1.0, ge=0)
    """Share of the steps that it gets where a step has one objective (`combine: one`)."""
    from_step: int = Field(0, ge=0)
    """The step of the run (from 0) at which it begins. Tan and Bansal 2019 (arXiv 1908.07490) add answering after half
    of theirs."""
    along_with: str | None = None
    """The objective whose steps it stands in as well, instead of having steps of its own (`combine: one`)."""


_NO_POSITIONS: NDArray[np.int64] = np.zeros(0, np.int64)


def empty_positions() -> NDArray[np.int64]:
    """No positions."""
    return _NO_POSITIONS


@dataclass(slots=True)
class Hidden:
    """An example of which something is hidden and guessed. Words are hidden by the objective that guesses them; regions
    are as they were when objectives ask, and are hidden in the batch."""

    example: Example
    question: Question | None = None
    """The question that the text is, if it is one."""
    place: int = 0
    """In the global batch."""
    image: tuple[int, str] = (0, "")
    """Dataset and key of the image."""
    lent_KD: NDArray[np.floating[Any]] | None = None
    """Features of other images' regions, in the precision of the shard."""
    guessed_K: NDArray[np.int64] = field(default_factory=empty_positions)
    """Image tokens (regions or patches) that are to be guessed, by their places, ascending."""


Judged = tuple[Tensor, Mapping[str, tuple[Tensor, float | Tensor]]]
"""Sum of the losses over targets, and metrics as (sum, count)."""


class Objective(ABC):
    """One pre-training or fine-tuning objective of a model.

    Args:
        name: its key in the config, in batches, in losses and among the model's heads.
    """

    rows: Rows
    """Which states it reads: of text tokens, image tokens, or the pooled vectors."""
    asks_features: ClassVar[bool] = False
    """As in `TargetForm`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def head(self) -> HeadConfig | None:
        """The head that it needs; None for one that judges the states themselves."""

    @abstractmethod
    def empty(self) -> Target:
        """A target of zero rows, with the shapes and types of a real one."""

    @abstractmethod
    def loss(self, scores_K: Tensor, targets: Targets) -> Judged:
        """Sum of the losses over targets (fp32 scalar with a graph), and metrics as (sum, count).

        Args:
            scores_K: what the head made of the K rows; [K, ...] in the model's precision.
        """

    def form(self) -> TargetForm:
        return TargetForm(self.rows, self.empty(), self.asks_features)

    def reads(self, batch: Batch) -> dict[Stream, Tensor | None]:
        """int64 rows of the final states that it reads, by stream, apart from the pooler's; None for all. The model
        need not work out others, which are NaN, so one that reads more than `states` says so here. Which streams, and
        whether it is all of one, does not depend on the batch."""
        return {} if self.rows == "example" else {self.rows: batch.targets[self.name].positions_K}

    def reading(self, encoded: Encoded, batch: Batch) -> Encoded:
        """What `scores` reads of a batch; an objective may add states of its own making to the taps."""
        return encoded

    def states(self, encoded: Encoded, targets: Targets) -> Tensor:
        """The rows that have a target, [K, H]."""
        states = {"text": encoded.text_NH, "image": encoded.image_MH, "example": encoded.pooled_BH}[self.rows]
        return states.index_select(0, targets.positions_K)

    def scores(self, head: nn.Module | None, encoded: Encoded, targets: Targets) -> Tensor:
        """The head's output on the rows that have a target."""
        assert head is not None
        return head(self.states(encoded, targets))  # type: ignore[no-any-return]

    def judged(self, head: nn.Module | None, encoded: Encoded, targets: Targets) -> Judged:
        """The loss of what the head makes of the rows that have a target."""
        return self.loss(self.scores(head, encoded, targets), targets)


class SelfSupervised(Objective):
    """An objective whose targets are made from the pair itself."""

    hides: ClassVar[Stream | None] = None
    """The modality that it hides something of; None for one that looks at what is there."""
    pairs: ClassVar[Literal["all", "matched"] | None] = None
    """Which pairs of an image and a text it is about; None for those that `on_mismatched` says. One that is about
    pairs has no target where a text stands without an image."""

    @abstractmethod
    def target(self, hidden: Hidden, rng: Draw) -> Target:
        """The targets of one example; may change the example (mask its words). Pure in (example, rng's key)."""

    def targets(self, hidden: Sequence[Hidden], draws: Draws) -> Asked:
        """The targets of many examples, at least one, as `target` makes them."""
        return asked_of([self.target(each, rng) for each, rng in zip(hidden, draws, strict=True)], self.empty())


@dataclass(frozen=True)
class Facts:
    """What an objective may ask of the run: the model's filled-in config and the tokenizer."""

    model: ModelConfig
    text: TextEncoder


Average = Literal["targets", "examples"]
"""Mean over all targets of the global batch; or over each example's targets first, then over the examples that have any
(Su et al. 2020, arXiv 1908.08530, in their code)."""
_BELOW_THE_LINE = 1e-4
"""What that code adds to a count before it divides by it."""


def shares(average: Average, counts_B: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
    """What each target adds to the count, where it is not 1, of examples with so many targets each."""
    return {} if average == "targets" else {WEIGHT: (1 / counts_B.repeat(counts_B)).astype(np.float32)}


def factors(targets: Targets, average: Average) -> Tensor | None:
    """What the loss of each target is multiplied by before they are added up, [K]; None for 1."""
    if average == "targets":
        return None
    share_K = targets.values[WEIGHT]
    return share_K / (1 + _BELOW_THE_LINE * share_K)


def averaged(loss_K: Tensor, targets: Targets, average: Average) -> Tensor:
    """Sum of the losses of single targets, as `average` says; for `examples` the sum of their examples' means."""
    factor_K = factors(targets, average)
    return loss_K.sum() if factor_K is None else (loss_K * factor_K).sum()


def precise(scores: Tensor) -> Tensor:
    """Scores in fp32 at least: a loss is a small difference of large numbers."""
    return scores if scores.dtype == torch.float64 else scores.float()


def cosine(guessed_KD: Tensor, wanted_KD: Tensor) -> tuple[Tensor, float]:
    """Sum of the cosines of guessed and true vectors and their number, as a metric."""
    return F.cosine_similarity(guessed_KD.detach().float(), wanted_KD.float(), dim=1).sum(), float(len(guessed_KD))


def accuracy(scores_KC: Tensor, labels_K: Tensor) -> tuple[Tensor, float]:
    """Right answers and their number, as a metric."""
    return (scores_KC.detach().argmax(-1) == labels_K).sum(), float(len(labels_K))
