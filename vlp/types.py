"""The records that flow through vlp: Sample -> Example -> Batch -> Encoded -> Losses.

Shape suffixes, here and everywhere:
    B examples of a batch      N text tokens of a batch     M image tokens of a batch     J = N + M
    T tokens of one text       R regions of one image       K targets of one objective
    D feature width            C classes                    H hidden width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vlp.transfer import moved, pinned

if TYPE_CHECKING:
    from torch import Tensor, device

Stream = Literal["text", "image"]
Rows = Literal["text", "image", "example"]
"""What a target's positions count: packed text tokens, packed image tokens, or examples (pooled vectors)."""


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


@dataclass(frozen=True, slots=True)
class Loan:
    """Neighbouring regions of a sample whose features are lent to a pair of another."""

    sample: int
    """Row of the block's sample tables."""
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and a text of one block that go through the model together."""

    image: int
    """Row of the block's sample tables whose image is taken."""
    text: int
    """Row of the block's example tables whose text is taken."""
    matched: bool = True
    second: int | None = None
    """Row of the example tables whose text follows the first, if there are two."""
    loans: tuple[Loan, ...] = ()
    """Regions of other samples, to stand in for hidden ones or to be told from them."""

    @property
    def texts(self) -> tuple[int, ...]:
        """Rows of the example tables, one or two."""
        return (self.text,) if self.second is None else (self.text, self.second)


@dataclass(slots=True)
class Target:
    """What one objective asks of one example: where it looks, and what should be guessed there."""

    positions: NDArray[np.int64]
    """[K], counted inside the example's own text or image; zeros for a target of the whole example."""
    values: dict[str, NDArray[Any]]
    """Each [K, ...], or with rows of its own that are of the example (a count, what targets are told from)."""


@dataclass(slots=True)
class RegionInput:
    """The regions of one image as the model will see them (an objective may have hidden some)."""

    features_RD: NDArray[np.float32]
    boxes_R4: NDArray[np.float32]
    confidence_R: NDArray[np.float32] | None = None
    class_probs_RC: NDArray[np.float32] | None = None
    hidden_R: NDArray[np.bool_] | None = None
    """True where the feature is zeroed; a model with a learned mask embedding puts it there."""
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
    """RGB as decoded, 0..255 (the backbone normalises them where it runs); floats are normalised already."""
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

    @property
    def tokens(self) -> int:
        """Length in tokens, text and image together."""
        return len(self.token_ids_T) + (len(self.image) if self.image is not None else 0)

    @property
    def regions(self) -> RegionInput | None:
        """The regions of the image, if it has any; an image's first tokens are theirs."""
        image = self.image.regions if isinstance(self.image, BothInput) else self.image
        return image if isinstance(image, RegionInput) else None

    def set_regions(self, regions: RegionInput) -> None:
        """Put other regions in their place."""
        if isinstance(self.image, BothInput):
            self.image = BothInput(regions, self.image.pixels)
        else:
            self.image = regions


@dataclass(slots=True)
class Targets:
    """The targets of one objective over a batch."""

    keeps_type: ClassVar[bool] = True
    """Targets stay as exact as they are, whatever type the model computes in."""

    positions_K: Tensor
    """int64 rows of the packed text, the packed image, or the examples, as the objective's `rows` says."""
    values: dict[str, Tensor]
    count: float
    """What the loss is divided by once it is summed over the global batch: the number of targets, or their weights."""
    survey: dict[str, Tensor] = field(default_factory=dict)
    """What a first pass over the global batch tells these rows (`vlp.train.survey`); empty where there was none."""


@dataclass(slots=True)
class Packing:
    """Where each example's tokens lie in a packed stream. Made on the CPU, so that no kernel waits for a length."""

    lengths: tuple[int, ...]
    lengths_B: Tensor
    starts_B1: Tensor
    """int32 offsets [B + 1], first 0, last the number of tokens."""
    longest: int
    rows_N: Tensor
    """int64: row of each packed token in a padded [B * longest] layout."""
    valid_BL: Tensor | None
    """bool [B, longest], True at real tokens; None where no row is padded."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return int(self.rows_N.shape[0])

    @property
    def examples_N(self) -> Tensor:
        """int64: the number of each token's example."""
        return self.rows_N // max(self.longest, 1)


@dataclass(slots=True)
class TextBatch:
    ids_N: Tensor
    positions_N: Tensor
    segments_N: Tensor
    """int64: which of its example's texts a token belongs to, counted from 0."""
    packing: Packing
    causal_B: Tensor | None = None
    """bool: the texts that are read from left to right; None where all are read both ways."""


@dataclass(slots=True)
class RegionBatch:
    features_MD: Tensor
    boxes_M4: Tensor
    hidden_M: Tensor
    packing: Packing
    aligned_MA: Tensor | None = None
    """int64: places of the words that a region is aligned with, -1 for none; None where no region is aligned."""
    cells_M2: Tensor | None = None
    """int64: row and column of a cell of a grid; None for regions of a detector."""
    grids_M2: Tensor | None = None
    """int64: rows and columns of its grid."""


@dataclass(slots=True)
class PixelBatch:
    pixels_P3HW: Tensor
    """Pixels of the P examples that have an image (all of them, but for text-only examples); uint8 0..255, or floats
    that are normalised already."""
    packing: Packing
    kept_M: Tensor | None = None
    """int64: the tokens that are seen, as rows of all tokens [P * L]; None for all of them."""
    grids_P2: Tensor | None = None
    """int64: rows and columns of patches that hold an image, where images differ in shape; the rest is padding."""
    hidden_M: Tensor | None = None
    """bool: the tokens that are hidden; None where no objective hides any."""


@dataclass(slots=True)
class BothBatch:
    """Regions and pixels of the same images."""

    regions: RegionBatch
    pixels: PixelBatch
    packing: Packing
    """Of both together."""
    rows_M: Tensor
    """int64: for each image token its row in the concatenation [regions ; pixels]."""


@dataclass(slots=True)
class FramedBatch:
    """Images with an extra row before or after their tokens, which shows nothing by itself."""

    tokens: RegionBatch | PixelBatch | BothBatch
    """What stands between."""
    first_P: Tensor
    """int64: the examples that have a row before."""
    last_P: Tensor
    """int64: the examples that have a row after."""
    packing: Packing
    """Of all rows."""
    rows_M: Tensor
    """int64: for each image token its row in the concatenation [tokens ; rows before ; rows after]."""


ImageBatch = RegionBatch | PixelBatch | BothBatch | FramedBatch


@dataclass(slots=True)
class Batch:
    """One micro-batch of one rank: packed, never padded. May hold zero examples."""

    text: TextBatch
    image: ImageBatch
    joint: Packing
    """The packing of a stream that holds each example's text and then its image."""
    joint_rows_J: Tensor
    """int64 [J]: for each joint row, its row in the concatenation [text_N ; image_M]."""
    split_rows_J: Tensor
    """int64 [J]: the inverse, for each row of [text_N ; image_M] its joint row."""
    targets: dict[str, Targets]
    ids: tuple[str, ...]
    plain: Batch | None = None
    """The texts before words were hidden, without their images; None where no objective reads them so too."""
    rematched: Rematched | None = None
    """Other texts that its images meet; given by a first pass over the global batch."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return self.joint.tokens

    @property
    def padded_tokens(self) -> int:
        """Tokens, were each example as long as the longest: what attention over padded layouts computes."""
        return len(self.joint) * self.joint.longest

    def to(self, where: device | str, dtype: Any = None) -> Batch:
        """A copy on a device; floating inputs of the model (never targets) take `dtype` if one is given."""
        return moved(self, where, dtype)

    def pin_memory(self) -> Batch:
        return pinned(self)


@dataclass(slots=True)
class Rematched:
    """Pairs of a batch's images with texts from anywhere in the global batch, to be told from the matched ones."""

    others: Batch
    """The texts that are not the batch's own, without images."""
    pairs: Batch
    """How texts and images meet: packings alone, its image holds nothing to see."""
    text_rows_N: Tensor
    """int64: for each text row of `pairs` its row in [own texts ; others]."""
    image_rows_M: Tensor
    """int64: for each image row of `pairs` its row in the batch's own images."""


@dataclass(slots=True)
class Step:
    """All micro-batches of one rank for one optimizer step."""

    number: int
    """0 for the first step of a run."""
    micro_batches: list[Batch]
    examples: int
    """Examples of this rank (not of the global batch)."""
    quarantined: list[dict[str, str]] = field(default_factory=list)
    """Examples that were replaced: data (the directory), shard, key, member, error."""
    cut_texts: int = 0
    """Texts that were cut at the model's limit."""
    failure: str = ""
    """Why the step could not be made, as a sentence; it then holds nothing, and all ranks stop together."""


@dataclass  # without slots: ZeRO-3 looks at what a module returns with vars()
class Encoded:
    """What the model makes of a batch."""

    text_NH: Tensor
    image_MH: Tensor
    pooled_BH: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)
    """Named states on the way: `text.unimodal`, `image.unimodal`, and the layers that were asked for."""
    source_MD: Tensor | None = None
    """What an image backbone made of the pixels, before anything was hidden and without a graph; None without one."""


@dataclass  # without slots: ZeRO-3 looks at what a module returns with vars()
class Losses:
    """Per objective the sum of its losses (a tensor with a graph); metrics as (sum, count) pairs, without."""

    sums: dict[str, Tensor]
    metrics: dict[str, tuple[Tensor, float | Tensor]]
    """A count is a tensor where it depends on values that lie on a device."""
