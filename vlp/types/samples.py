"""What is read: samples of shards, slots of a global batch, and the pairs that a task draws for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlp.types.examples import ImageInput


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image; `answers` is empty where a split keeps them back."""

    text: str
    answers: tuple[str, ...] = ()
    id: str = ""
    types: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Its kinds, by the dataset's own names (VQA: `question_type`, `answer_type`); metrics group by them."""


@dataclass(frozen=True, slots=True)
class Regions:
    """What a detector saw on one image."""

    features_RD: NDArray[np.floating[Any]]
    boxes_R4: NDArray[np.floating[Any]]
    """x1, y1, x2, y2 as shares of width and height, in 0..1."""
    confidence_R: NDArray[np.floating[Any]] | None = None
    """How sure the detector is of a region; beside `classes_R`, of its class."""
    class_probs_RC: NDArray[np.floating[Any]] | None = None
    classes_R: NDArray[np.integer[Any]] | None = None
    """Number of the class, from detectors whose class probabilities were not kept."""
    attributes_R: NDArray[np.integer[Any]] | None = None
    """Number of the attribute (red, wooden, ...)."""
    attribute_confidence_R: NDArray[np.floating[Any]] | None = None

    def __len__(self) -> int:
        return len(self.features_RD)


@dataclass(frozen=True, slots=True)
class View:
    """How an image is looked at once: which part of it, from which side, in which colours."""

    box: tuple[float, float, float, float] | None = None
    """x1, y1, x2, y2 of the part that is seen, as shares of the whole; None is what the model sees of every image."""
    mirrored: bool = False
    """Left and right exchanged, after the part is cut out."""
    brightness: float = 1.0
    """Factor of all values."""
    contrast: float = 1.0
    """Factor of the distance to the mean grey."""
    saturation: float = 1.0
    """Factor of the distance to each pixel's own grey."""
    hue: float = 0.0
    """Turn of the colour circle; 1 is a whole turn."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of a shard. Holds only the members that were asked for."""

    key: str
    image: bytes | None = None
    regions: Regions | None = None
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    width: int = 0
    """Pixels of the upright image, as the index has it; 0 if unknown."""
    height: int = 0
    view: View | None = None
    """How training looks at the image this time; None is the whole of it, as evaluation does."""
    second: str | None = None
    """The text that follows the one that makes the example, where a pair has two."""
    shown: ImageInput | None = None
    """The image as the model takes it, where that is made already."""
    lent_KD: NDArray[np.floating[Any]] | None = None
    """Features of regions that others of the block lend to the image, where a pair has loans."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of a global batch: which example stands there. Drawn by the order, before anything is read."""

    step: int
    index: int
    """Place in the global batch, 0 <= index < batch.size."""
    dataset: int
    epoch: int
    block: int
    """Number of the block in the epoch of its group."""
    group: int
    example: int
    """Row of the block's tables (see `vlp.data.index.Block`)."""


class Loan(NamedTuple):
    """Neighbouring regions of a sample whose features are lent to a pair of another."""

    sample: int
    """Row of the block's sample tables."""
    first: int
    regions: int
    """How many."""


class Pair(NamedTuple):
    """An image and a text of one block that go through the model together. A tuple, since every rank makes those of the
    whole batch, and a frozen dataclass takes three times as long to make."""

    image: int
    """Row of the block's sample tables whose image is taken."""
    text: int
    """Row of the block's example tables whose text is taken."""
    matched: bool = True
    second: int | None = None
    """Row of the example tables whose text follows the first, if there are two."""
    loans: tuple[Loan, ...] = ()
    """Regions of other samples, to stand in for hidden ones or to be told from them."""
    text_passes: float = 1.0
    """How often the model goes over its text: more than once where a step makes further pairs of it."""
    image_passes: float = 1.0

    def tokens(self, text: int, image: int) -> int:
        """Tokens that the model computes, of so many of the text and so many of the image."""
        return math.ceil(text * self.text_passes + image * self.image_passes)

    @property
    def texts(self) -> tuple[int, ...]:
        """Rows of the example tables, one or two."""
        return (self.text,) if self.second is None else (self.text, self.second)
