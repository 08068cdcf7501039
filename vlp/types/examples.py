"""What a task prepares: one (image, text) pair with its targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vlp.types.samples import Question


@dataclass(slots=True)
class Target:
    """What one objective asks of one example: where it looks, and what should be guessed there."""

    positions: NDArray[np.int64]
    """[K], counted inside the example's own text or image; zeros for a target of the whole example."""
    values: dict[str, NDArray[Any]]
    """Each [K, ...], or with rows of its own that are of the example (a count, what targets are told from)."""


@dataclass(slots=True)
class Asked:
    """What one objective asks of many examples: their targets, those of one behind those of the other."""

    counts_B: NDArray[np.int64]
    """Targets of each example."""
    positions_K: NDArray[np.int64]
    """Counted inside each example's own text or image."""
    values: dict[str, NDArray[Any]]
    """Each [K, ...], or with rows of its own, one example's behind the other's."""

    def one(self) -> Target:
        """The target of the only example."""
        assert len(self.counts_B) == 1
        return Target(self.positions_K, self.values)

    def only(self, kept_B: NDArray[np.bool_]) -> Asked:
        """Of some of the examples; all values must be of single targets."""
        assert all(len(array) == len(self.positions_K) for array in self.values.values())
        kept_K = kept_B.repeat(self.counts_B)
        values = {name: array[kept_K] for name, array in self.values.items()}
        return Asked(self.counts_B[kept_B], self.positions_K[kept_K], values)

    def among(self, rows_B: NDArray[np.int64], examples: int) -> Asked:
        """Of so many examples, among which these have those rows; nothing is asked of the others."""
        counts_E = np.zeros(examples, np.int64)
        counts_E[rows_B] = self.counts_B
        return Asked(counts_E, self.positions_K, self.values)


@dataclass(slots=True)
class Hiding:
    """What becomes of an image's features: those at `hidden_R` are set to zero. It is done to the batch, where that is
    used (`Batch.to`)."""

    replaced_P: NDArray[np.int64] | None = None
    """Regions that get the feature of another image's region; None for none."""
    lent_PD: NDArray[np.floating[Any]] | None = None
    """Those features, [P, D], in the precision of the shard."""
    seen_S: NDArray[np.int64] | None = None
    """Regions that the first one, which is the whole image, is then the mean of; None where it is none."""


@dataclass(slots=True)
class RegionInput:
    """The regions of one image, as the detector saw them, and what is hidden of them."""

    features_RD: NDArray[np.float32]
    boxes_R4: NDArray[np.float32]
    confidence_R: NDArray[np.float32] | None = None
    class_probs_RC: NDArray[np.floating[Any]] | None = None
    """In the precision of the shard: of few regions they are asked."""
    hidden_R: NDArray[np.bool_] | None = None
    """True where a model with a learned mask embedding puts it."""
    hiding: Hiding | None = None
    classes_R: NDArray[np.int64] | None = None
    attributes_R: NDArray[np.int64] | None = None
    attribute_confidence_R: NDArray[np.float32] | None = None
    whole: bool = False
    """Whether region 0 is the whole image."""
    aligned_RA: NDArray[np.int64] | None = None
    """Places of the words that a region is aligned with, -1 where it has fewer than A."""

    def __len__(self) -> int:
        return len(self.features_RD)


@dataclass(slots=True)
class PixelInput:
    """The pixels of one image, scaled to the model's size, and how many tokens the backbone makes of them."""

    pixels_3HW: NDArray[np.uint8] | NDArray[np.float32]
    """RGB as decoded, 0..255 (the backbone normalises them where it runs); floats are normalised already. In memory the
    three colours of a pixel usually lie side by side."""
    tokens: int
    kept_K: NDArray[np.int64] | None = None
    """Tokens that the model sees, in their order, where it does not see all."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches that hold the image, where images have shapes of their own; the rest is padding."""
    hidden_K: NDArray[np.bool_] | None = None
    """True where a token that the model sees is hidden; None for none."""

    @property
    def places_K(self) -> NDArray[np.int64]:
        """The tokens that the model sees, by their places among all."""
        return np.arange(self.tokens) if self.kept_K is None else self.kept_K

    def __len__(self) -> int:
        return self.tokens if self.kept_K is None else len(self.kept_K)


@dataclass(slots=True)
class BothInput:
    """The regions of one image, and its pixels: the regions' tokens come first."""

    regions: RegionInput
    pixels: PixelInput

    def __len__(self) -> int:
        return len(self.regions) + len(self.pixels)


ImageInput = RegionInput | PixelInput | BothInput


@dataclass(slots=True)
class Origin:
    """What an example was made of, as far as it matters when something of it is hidden and asked."""

    key: int
    """By which all else of the example is drawn (`vlp.seeds.Draws`)."""
    place: int
    """In the global batch."""
    image: tuple[int, str]
    """Dataset and key of the image."""
    question: Question | None
    """The question that the text is, if it is one."""
    lent_KD: NDArray[np.floating[Any]] | None
    """Features of regions that others of the block lend to the image."""


@dataclass(slots=True)
class Example:
    """One (image, text) pair that a task prepared for the model."""

    id: str
    """`<shard>/<sample key>#<text number>`: stable over runs, readable in logs."""
    token_ids_T: NDArray[np.int64]
    special_T: NDArray[np.bool_]
    """True at [CLS], [SEP] and other tokens that no objective may hide."""
    word_T: NDArray[np.int64]
    """Number of the word a token belongs to, -1 for specials."""
    image: ImageInput | None
    matched: bool = True
    targets: dict[str, Target] = field(default_factory=dict)
    segment_T: NDArray[np.int64] | None = None
    """Which of its texts a token belongs to, 0 or 1; None where there is one."""
    causal: bool = False
    """Whether the text is read from left to right: a word sees the image and the words before it, the image itself."""
    plain_T: NDArray[np.int64] | None = None
    """`token_ids_T` before words were hidden, where an objective reads the text so too; None is the same."""
    origin: Origin | None = None
    """Where something is still to be hidden and asked, once the batch is whole."""

    @property
    def tokens(self) -> int:
        """Length in tokens, text and image together."""
        return len(self.token_ids_T) + (len(self.image) if self.image is not None else 0)

    @property
    def regions(self) -> RegionInput | None:
        """The regions of the image, if it has any; an image's first tokens are theirs."""
        image = self.image
        if isinstance(image, RegionInput):
            return image
        return image.regions if isinstance(image, BothInput) else None
