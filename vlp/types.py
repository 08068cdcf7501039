"""The records that flow through vlp: Sample -> Example -> Batch -> Encoded -> Losses.

Shape suffixes, here and everywhere:
    B examples of a batch      N text tokens of a batch     M image tokens of a batch     J = N + M
    T tokens of one text       R regions of one image       K targets of one objective
    D feature width            C classes                    H hidden width
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, device

Stream = Literal["text", "image"]
Rows = Literal["text", "image", "example"]
"""What a target's positions count: packed text tokens, packed image tokens, or examples (pooled vectors)."""


# ---------------------------------------------------------------------------------------------------- Sample


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an image; `answers` is empty where a split keeps them back."""

    text: str
    answers: tuple[str, ...] = ()
    id: str = ""


@dataclass(frozen=True, slots=True)
class Regions:
    """What a detector saw on one image."""

    features_RD: NDArray[np.floating[Any]]
    boxes_R4: NDArray[np.floating[Any]]
    """x1, y1, x2, y2 as shares of width and height, in 0..1."""
    confidence_R: NDArray[np.floating[Any]] | None = None
    class_probs_RC: NDArray[np.floating[Any]] | None = None

    def __len__(self) -> int:
        return len(self.features_RD)


@dataclass(frozen=True, slots=True)
class Sample:
    """One record of a shard. Holds only the members that were asked for."""

    key: str
    image: bytes | None = None
    regions: Regions | None = None
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()


# --------------------------------------------------------------------------------------------- order and plan


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
class Pair:
    """An image and a text of one block that go through the model together."""

    image: int
    """Row of the block's sample tables whose image is taken."""
    text: int
    """Row of the block's example tables whose text is taken."""
    matched: bool = True


# --------------------------------------------------------------------------------------------------- Example


@dataclass(slots=True)
class Target:
    """What one objective asks of one example: where it looks, and what should be guessed there."""

    positions: NDArray[np.int64]
    """[K], counted inside the example's own text or image; zeros for a target of the whole example."""
    values: dict[str, NDArray[Any]]
    """Each [K, ...]."""


@dataclass(slots=True)
class RegionInput:
    """The regions of one image as the model will see them (an objective may have hidden some)."""

    features_RD: NDArray[np.float32]
    boxes_R4: NDArray[np.float32]
    confidence_R: NDArray[np.float32] | None = None
    class_probs_RC: NDArray[np.float32] | None = None
    hidden_R: NDArray[np.bool_] | None = None
    """True where the feature is hidden; a model with a learned mask embedding puts it there."""

    def __len__(self) -> int:
        return len(self.features_RD)


@dataclass(slots=True)
class PixelInput:
    """The pixels of one image, resized and normalised, and how many tokens the backbone makes of them."""

    pixels_3HW: NDArray[np.float32]
    tokens: int

    def __len__(self) -> int:
        return self.tokens


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
    image: RegionInput | PixelInput | None
    matched: bool = True
    targets: dict[str, Target] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Length in tokens, text and image together."""
        return len(self.token_ids_T) + (len(self.image) if self.image is not None else 0)


# ----------------------------------------------------------------------------------------------------- Batch


@dataclass(slots=True)
class Targets:
    """The targets of one objective over a batch."""

    positions_K: Tensor
    """int64 rows of the packed text, the packed image, or the examples, as the objective's `rows` says."""
    values: dict[str, Tensor]
    count: float
    """What the loss is divided by once it is summed over the global batch: the number of targets, or their weights."""


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


@dataclass(slots=True)
class TextBatch:
    ids_N: Tensor
    positions_N: Tensor
    packing: Packing


@dataclass(slots=True)
class RegionBatch:
    features_MD: Tensor
    boxes_M4: Tensor
    hidden_M: Tensor
    packing: Packing


@dataclass(slots=True)
class PixelBatch:
    pixels_P3HW: Tensor
    """Pixels of the P examples that have an image (all of them, but for text-only examples)."""
    packing: Packing


@dataclass(slots=True)
class Batch:
    """One micro-batch of one rank: packed, never padded. May hold zero examples."""

    text: TextBatch
    image: RegionBatch | PixelBatch
    joint: Packing
    """The packing of a stream that holds each example's text and then its image."""
    joint_rows_J: Tensor
    """int64 [J]: for each joint row, its row in the concatenation [text_N ; image_M]."""
    split_rows_J: Tensor
    """int64 [J]: the inverse, for each row of [text_N ; image_M] its joint row."""
    targets: dict[str, Targets]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return self.joint.tokens

    def to(self, where: device | str, dtype: Any = None) -> Batch:
        """A copy on a device; floating inputs of the model (never targets) take `dtype` if one is given."""
        batch: Batch = _moved(self, where, dtype)
        return batch

    def pin_memory(self) -> Batch:
        batch: Batch = _pinned(self)
        return batch


def _moved(record: Any, where: Any, dtype: Any) -> Any:
    import torch

    if isinstance(record, torch.Tensor):
        cast = dtype if record.is_floating_point() and dtype is not None else None
        return record.to(device=where, dtype=cast, non_blocking=True)
    if isinstance(record, Targets):
        dtype = None
    return _mapped(record, lambda part: _moved(part, where, dtype))


def _pinned(record: Any) -> Any:
    import torch

    if isinstance(record, torch.Tensor):
        return record.pin_memory()
    return _mapped(record, _pinned)


def _mapped(record: Any, change: Any) -> Any:
    """A copy of a record with `change` applied to each field that can hold tensors."""
    if isinstance(record, dict):
        return {name: change(value) for name, value in record.items()}
    if isinstance(record, (Batch, TextBatch, RegionBatch, PixelBatch, Packing, Targets)):
        names = record.__dataclass_fields__
        return replace(record, **{name: change(getattr(record, name)) for name in names})
    return record


@dataclass(slots=True)
class Step:
    """All micro-batches of one rank for one optimizer step."""

    number: int
    """0 for the first step of a run."""
    micro_batches: list[Batch]
    examples: int
    """Examples of this rank (not of the global batch)."""
    quarantined: list[dict[str, str]] = field(default_factory=list)
    """Examples that were replaced: shard, key, member, error."""
    cut_texts: int = 0
    """Texts that were cut at the model's limit."""


# -------------------------------------------------------------------------------------------- Encoded, Losses


@dataclass  # without slots: ZeRO-3 looks at what a module returns with vars()
class Encoded:
    """What the model makes of a batch."""

    text_NH: Tensor
    image_MH: Tensor
    pooled_BH: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)
    """Named states on the way: `text.unimodal`, `image.unimodal`, and the layers that were asked for."""


@dataclass  # without slots: ZeRO-3 looks at what a module returns with vars()
class Losses:
    """Per objective the sum of its losses (a tensor with a graph); metrics as (sum, count) pairs, without."""

    sums: dict[str, Tensor]
    metrics: dict[str, tuple[Tensor, float]]
