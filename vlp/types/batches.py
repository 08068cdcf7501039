"""What the model takes and gives: packed batches, the states it makes of them, losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vlp.transfer import moved, pinned

if TYPE_CHECKING:
    from torch import Tensor, device

Stream = Literal["text", "image"]
Rows = Literal["text", "image", "example"]
"""What a target's positions count: packed text tokens, packed image tokens, or examples (pooled vectors)."""


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
    that are normalised already. In memory the colours come last (torch.channels_last), as decoders leave them."""
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
