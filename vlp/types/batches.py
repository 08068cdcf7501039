"""What the model takes and gives: packed batches, the states it makes of them, losses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
    feature_rows_K: Tensor | None = None
    """int64: rows of the regions' features, as they are before any is hidden, that are to become `values["feature"]`;
    None where no feature is asked for, or is there (`Batch.to`)."""


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
class Read:
    """The rows of a stream whose final states are read, by heads or by the pooler."""

    rows_W: Tensor
    """int64, ascending."""
    packing: Packing
    """Which example each belongs to."""
    ever: bool = True
    """False where no batch of the step reads a row of the stream; True without rows is this batch's chance."""


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
class Hidings:
    """What is hidden of the features of a batch's regions.

    A worker only says so: to go over the features where they lie, and to copy out those that are to be guessed, would
    cost it as much as all else that it hides and asks, and a device nothing.

    Shape suffixes: Z regions that are zeroed, P that are replaced, W that are whole images, S that these are means of.
    """

    zeroed_Z: Tensor
    """int64 rows whose feature becomes zero."""
    replaced_P: Tensor
    """int64 rows that get a feature of another image's region."""
    lent_PD: Tensor
    """float32: those features."""
    whole_W: Tensor
    """int64 rows that become the mean of features that are seen, or zero where none is."""
    seen_S: Tensor
    """int64 rows of these, one mean's behind the other's."""
    starts_W: Tensor
    """int64: where each mean's begin."""

    def hide(self, features_MD: Tensor, dtype: Any = None) -> Tensor:
        """A copy of the features, [M, D], with those hidden; in another type if one is given."""
        from torch.nn import functional as F

        shown_MD = features_MD.to(features_MD.dtype if dtype is None else dtype, copy=True)
        if len(self.whole_W):
            mean_WD = F.embedding_bag(self.seen_S, features_MD, self.starts_W, mode="mean")
            shown_MD.index_copy_(0, self.whole_W, mean_WD.to(shown_MD.dtype))
        shown_MD.index_fill_(0, self.zeroed_Z, 0)
        return shown_MD.index_copy_(0, self.replaced_P, self.lent_PD.to(shown_MD.dtype))


@dataclass(slots=True)
class RegionBatch:
    features_MD: Tensor
    boxes_M4: Tensor
    hidden_M: Tensor
    """bool: regions where a model with a learned mask embedding puts it."""
    packing: Packing
    aligned_MA: Tensor | None = None
    """int64: places of the words that a region is aligned with, -1 for none; None where no region is aligned."""
    hidings: Hidings | None = None
    """What is still to be hidden of the features (`Batch.to`); None for nothing."""
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
    read: dict[Stream, Read] = field(default_factory=dict)
    """What is read of the streams' final states, so that no others need be worked out; of one that is missing, all.
    Which are missing, and which are read `ever`, is the same on all ranks: else these would make gradients in orders of
    their own, and ZeRO would add up those of different weights."""

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
        """A copy on a device, of which is hidden and asked what the loader has said; floating inputs of the model
        (never targets) take `dtype` if one is given."""
        regions = regions_of(self.image)
        asked = any(targets.feature_rows_K is not None for targets in self.targets.values())
        if regions is None or not (asked or regions.hidings):
            return moved(self, where, dtype)
        here = moved(self, where)  # features stay as exact as they are until they have been asked for
        regions = regions_of(here.image)
        assert regions is not None
        targets = {name: _with_features(each, regions.features_MD) for name, each in here.targets.items()}
        image = _with_regions(here.image, _shown(regions, dtype))
        return moved(replace(here, image=image, targets=targets), where, dtype)

    def pin_memory(self) -> Batch:
        return pinned(self)


def regions_of(image: ImageBatch) -> RegionBatch | None:
    """The regions among an image's tokens; None where there are only pixels."""
    inner = image.tokens if isinstance(image, FramedBatch) else image
    if isinstance(inner, BothBatch):
        return inner.regions
    return inner if isinstance(inner, RegionBatch) else None


def _with_regions(image: ImageBatch, regions: RegionBatch) -> ImageBatch:
    """The image with other regions."""
    if isinstance(image, FramedBatch):
        return replace(image, tokens=_with_regions(image.tokens, regions))  # type: ignore[arg-type]  # never framed
    return replace(image, regions=regions) if isinstance(image, BothBatch) else regions


def _shown(regions: RegionBatch, dtype: Any) -> RegionBatch:
    """The regions as the model sees them."""
    if regions.hidings is None:
        return regions
    return replace(regions, features_MD=regions.hidings.hide(regions.features_MD, dtype), hidings=None)


def _with_features(targets: Targets, features_MD: Tensor) -> Targets:
    """The targets with the features that they ask for."""
    if targets.feature_rows_K is None:
        return targets
    feature_KD = features_MD.index_select(0, targets.feature_rows_K)
    return replace(targets, values={**targets.values, "feature": feature_KD}, feature_rows_K=None)


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
    """Final states; they may be NaN where `Batch.read` says that nobody reads them."""
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
