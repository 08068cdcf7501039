"""Examples into one packed batch: tokens one after the other, targets' positions shifted along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp.data.packing import join, pack, starts_of, within
from vlp.data.rows import joined
from vlp.types import (
    Asked,
    Batch,
    BothBatch,
    BothInput,
    Example,
    FramedBatch,
    Hidings,
    ImageBatch,
    ImageInput,
    Packing,
    PixelBatch,
    PixelInput,
    RegionBatch,
    RegionInput,
    Rows,
    Target,
    Targets,
    TextBatch,
    regions_of,
)

_AS_THEY_ARE = tuple(map(np.dtype, (np.float32, np.int64, np.bool_, np.uint8)))
"""Types that stay; pixels as bytes are a quarter of the memory on the way to the device."""
WEIGHT = "weight"
"""Name of the target value that, where present, is summed into the count (a soft answer counts by its score). A single
number per example is what the example counts as a whole."""


@dataclass(frozen=True, slots=True)
class ImageForm:
    """What the image side of a batch looks like, so that a batch without images has the right shapes too."""

    kind: Literal["regions", "pixels", "both"]
    width: int
    """Regions: numbers per region feature. Pixels: height and width of the square image."""
    size: int = 0
    """Both: height and width of the square image, `width` being the regions'."""
    first: bool = False
    """Whether a row stands before the tokens of each image."""
    last: bool = False
    """Whether a row stands after the tokens of each example's image, or alone where it has none."""

    def framed(self, tokens: int) -> int:
        """Tokens of an image of so many, extra rows included."""
        return tokens + int(self.first and tokens > 0) + int(self.last)


@dataclass(frozen=True, slots=True)
class TargetForm:
    """What the targets of one objective look like, so that a batch without any has the right shapes too."""

    rows: Rows
    """What positions count."""
    empty: Target
    """A target of zero rows whose arrays have the trailing shapes and types of real ones."""
    asks_features: bool = False
    """Whether the features of the regions at its positions are values too (`feature`): the batch finds them among its
    own, before any is hidden."""


def collate(
    examples: Sequence[Example],
    image: ImageForm,
    targets: Mapping[str, TargetForm],
    asked: Mapping[str, Asked] | None = None,
) -> Batch:
    """Pack examples (zero of them is fine) into one batch.

    Floating arrays become float32, integers int64 (bytes of pixels stay bytes), in inputs and targets alike.

    Args:
        examples: in the order they shall lie in.
        image: kind and width of the image side; examples without an image give it zero tokens.
        targets: the form of each objective's targets; every objective is present in the result, with zero rows if
            no example has a target for it.
        asked: what objectives ask of all the examples; what others ask, the examples hold.
    Raises:
        ValueError: something is asked by an objective that `targets` does not list.
    """
    text = _text(examples)
    images = _framed(_images([example.image for example in examples], image), image)
    joint, joint_rows_J, split_rows_J = join(text.packing, images.packing)
    asked, held = asked or {}, {name for example in examples for name in example.targets}
    unknown = (held | asked.keys()) - targets.keys()
    if unknown:
        raise ValueError(f"targets without a form: {sorted(unknown)}")
    starts = {
        "text": text.packing.starts_B1,
        "image": images.packing.starts_B1 + int(image.first),
        "example": torch.arange(len(examples) + 1),
    }
    return Batch(
        text=text,
        image=images,
        joint=joint,
        joint_rows_J=joint_rows_J,
        split_rows_J=split_rows_J,
        targets={
            name: _targets(
                asked.get(name) or _held(name, form, examples if name in held else ()), form, starts[form.rows], images
            )
            for name, form in targets.items()
        },
        ids=tuple(example.id for example in examples),
    )


def with_texts(batch: Batch, examples: Sequence[Example], targets: Mapping[str, TargetForm]) -> Batch:
    """The batch with the texts of other examples, whose images it holds already; targets are of words alone."""
    text = _text(examples)
    joint, joint_rows_J, split_rows_J = join(text.packing, batch.image.packing)
    made = {
        name: _targets(_held(name, form, examples), form, text.packing.starts_B1, batch.image)
        for name, form in targets.items()
    }
    return replace(
        batch, text=text, joint=joint, joint_rows_J=joint_rows_J, split_rows_J=split_rows_J, targets=made, read={}
    )


def _text(examples: Sequence[Example]) -> TextBatch:
    packing = pack([len(example.token_ids_T) for example in examples])
    causal = [example.causal for example in examples]
    ids = [example.token_ids_T for example in examples]
    segments_N = np.zeros(packing.tokens, np.int64)
    for number, example in enumerate(examples):
        if example.segment_T is not None:
            first, end = packing.starts_B1[number : number + 2].tolist()
            segments_N[first:end] = example.segment_T
    return TextBatch(
        ids_N=_tensor(_joined(ids, np.zeros(0, np.int64))),
        positions_N=within(packing),
        segments_N=torch.from_numpy(segments_N),
        packing=packing,
        causal_B=torch.tensor(causal) if any(causal) else None,
    )


def _images(images: Sequence[ImageInput | None], form: ImageForm) -> RegionBatch | PixelBatch | BothBatch:
    if form.kind == "regions":
        return _regions(images, form.width)
    if form.kind == "pixels":
        return _pixels(images, form.width)
    regions = _regions([image.regions if isinstance(image, BothInput) else None for image in images], form.width)
    pixels = _pixels([image.pixels if isinstance(image, BothInput) else None for image in images], form.size)
    packing, rows_M, _ = join(regions.packing, pixels.packing)
    return BothBatch(regions, pixels, packing, rows_M)


def _framed(images: RegionBatch | PixelBatch | BothBatch, form: ImageForm) -> ImageBatch:
    """The images with their extra rows, if the form has any. Only an image gets a first row."""
    if not (form.first or form.last):
        return images
    lengths_B = images.packing.lengths_B.numpy()
    first_B = (lengths_B > 0) if form.first else np.zeros(len(lengths_B), np.bool_)
    last_B = np.full(len(lengths_B), form.last)
    packing = pack((first_B + lengths_B + last_B).tolist())
    starts_B1 = packing.starts_B1.numpy()
    kind_M = np.zeros(packing.tokens, np.int8)
    kind_M[starts_B1[:-1][first_B]] = 1
    kind_M[starts_B1[1:][last_B] - 1] = 2
    rows_M = np.empty(packing.tokens, np.int64)
    rows_M[np.argsort(kind_M, kind="stable")] = np.arange(packing.tokens)  # to [tokens ; before ; behind]
    first_P, last_P = (torch.from_numpy(np.flatnonzero(which_B)) for which_B in (first_B, last_B))
    return FramedBatch(images, first_P, last_P, packing, rows_M=torch.from_numpy(rows_M))


def _regions(given: Sequence[ImageInput | None], width: int) -> RegionBatch:
    images = [image for image in given if isinstance(image, RegionInput)]
    hidden = [np.zeros(len(image), np.bool_) if image.hidden_R is None else image.hidden_R for image in images]
    hidden_M = _joined(hidden, np.zeros(0, np.bool_))
    return RegionBatch(
        features_MD=_tensor(_features(images, width)),
        boxes_M4=_tensor(_joined([image.boxes_R4 for image in images], np.zeros((0, 4), np.float32))),
        hidden_M=_tensor(hidden_M),
        packing=_image_packing(given),
        aligned_MA=_aligned(images),
        hidings=_hidings(images, hidden_M, width),
    )


def _hidings(images: Sequence[RegionInput], hidden_M: NDArray[np.bool_], width: int) -> Hidings | None:
    """What is hidden of the images' features, counted among all of them."""
    hidings, lengths = [image.hiding for image in images], [len(image) for image in images]
    if all(hiding is None for hiding in hidings):
        return None
    said_M = np.array([hiding is not None for hiding in hidings]).repeat(lengths)
    starts = starts_of(lengths).tolist()
    found = [(first, hiding) for first, hiding in zip(starts, hidings, strict=False) if hiding is not None]
    replaced = [first + each.replaced_P for first, each in found if each.replaced_P is not None]
    lent = [each.lent_PD for _, each in found if each.lent_PD is not None]
    seen = [(first, each.seen_S) for first, each in found if each.seen_S is not None]
    none = np.zeros(0, np.int64)
    return Hidings(
        zeroed_Z=_tensor((hidden_M & said_M).nonzero()[0]),
        replaced_P=_tensor(_joined(replaced, none)),
        lent_PD=_tensor(np.concatenate([np.zeros((0, width), np.float16), *lent])),  # of any precision
        whole_W=_tensor(np.array([first for first, _ in seen], np.int64)),
        seen_S=_tensor(_joined([first + seen_S for first, seen_S in seen], none)),
        starts_W=_tensor(starts_of([len(seen_S) for _, seen_S in seen])[:-1]),
    )


def _features(images: Sequence[RegionInput], width: int) -> NDArray[np.float32]:
    return joined([image.features_RD for image in images]) if images else np.zeros((0, width), np.float32)


def _aligned(images: Sequence[RegionInput]) -> Tensor | None:
    """The words that each region is aligned with, to the longest list of them."""
    if all(image.aligned_RA is None for image in images):
        return None
    lists = [np.full((len(image), 1), -1) if image.aligned_RA is None else image.aligned_RA for image in images]
    longest = max(array.shape[1] for array in lists)
    padded = [np.pad(array, ((0, 0), (0, longest - array.shape[1])), constant_values=-1) for array in lists]
    return _tensor(np.concatenate(padded))


def _pixels(given: Sequence[ImageInput | None], size: int) -> PixelBatch:
    images = _alike([image for image in given if isinstance(image, PixelInput)])
    kept = None
    if any(image.kept_K is not None for image in images):
        starts = starts_of([image.tokens for image in images])
        kept = _tensor(np.concatenate([image.places_K + start for image, start in zip(images, starts, strict=False)]))
    hidden = None
    if any(image.hidden_K is not None for image in images):
        rows = [np.zeros(len(image), np.bool_) if image.hidden_K is None else image.hidden_K for image in images]
        hidden = _tensor(np.concatenate(rows))
    return PixelBatch(
        pixels_P3HW=_stacked([image.pixels_3HW for image in images], size),
        packing=_image_packing(given),
        kept_M=kept,
        grids_P2=_grids(images),
        hidden_M=hidden,
    )


def _stacked(pixels: Sequence[NDArray[Any]], size: int) -> Tensor:
    """Pixels of images of one size, [P, 3, H, W], in memory with the colours last."""
    if not pixels:
        return torch.zeros(0, size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    _, height, width = pixels[0].shape
    rows_HW3 = joined([pixels_3HW.transpose(1, 2, 0) for pixels_3HW in pixels])
    return _tensor(rows_HW3.reshape(-1, height, width, 3)).permute(0, 3, 1, 2)


def _alike(images: list[PixelInput]) -> list[PixelInput]:
    """Images of one height and width: smaller ones get rows and columns of padding, of which no token is taken."""
    sizes = {image.pixels_3HW.shape[1:] for image in images}
    if len(sizes) < 2:
        return images
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    return [_padded(image, height, width) for image in images]


def _padded(image: PixelInput, height: int, width: int) -> PixelInput:
    assert image.grid is not None, "images of different sizes are cut into patches"
    rows, columns = image.grid
    _, own_height, own_width = image.pixels_3HW.shape
    across, down = width * columns // own_width, height * rows // own_height
    pixels_3HW: NDArray[Any] = np.zeros((3, height, width), image.pixels_3HW.dtype)
    pixels_3HW[:, :own_height, :own_width] = image.pixels_3HW
    kept_K = image.places_K // columns * across + image.places_K % columns
    return PixelInput(pixels_3HW, down * across, kept_K, image.grid, image.hidden_K)


def _grids(images: Sequence[PixelInput]) -> Tensor | None:
    """Rows and columns of the images' patches, where images have shapes of their own."""
    grids = [image.grid for image in images if image.grid is not None]
    return torch.tensor(grids, dtype=torch.int64) if grids and len(grids) == len(images) else None


def _image_packing(images: Sequence[ImageInput | None]) -> Packing:
    return pack([0 if image is None else len(image) for image in images])


def _held(name: str, form: TargetForm, examples: Sequence[Example]) -> Asked:
    """What the examples hold of one objective's targets."""
    return asked_of([example.targets.get(name) for example in examples], form.empty)


def asked_of(targets: Sequence[Target | None], empty: Target) -> Asked:
    """The targets of each example, if it has any, one behind the other.

    Args:
        empty: a target of zero rows, whose shapes and types are those of none.
    """
    found = [target for target in targets if target is not None]
    return Asked(
        np.array([0 if target is None else len(target.positions) for target in targets], np.int64),
        np.concatenate([empty.positions, *(target.positions for target in found)]),
        {key: _joined([target.values[key] for target in found], none) for key, none in empty.values.items()},
    )


def _targets(asked: Asked, form: TargetForm, starts_B1: Tensor, image: ImageBatch) -> Targets:
    rows_K = np.arange(len(asked.counts_B)).repeat(asked.counts_B)
    positions_K = asked.positions_K + starts_B1.numpy()[rows_K]
    values = {key: _tensor(asked.values[key]) for key in form.empty.values}
    count = float(asked.values[WEIGHT].sum(dtype=np.float64)) if WEIGHT in values else float(len(positions_K))
    targets = Targets(torch.from_numpy(positions_K), values, count)
    if form.asks_features and (regions := regions_of(image)):
        targets.feature_rows_K = torch.from_numpy(asked.positions_K + regions.packing.starts_B1.numpy()[rows_K])
    return targets


def _joined(arrays: Sequence[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    """The arrays one after the other; `empty` (zero rows) stands in for none and fixes shape and type."""
    if not arrays:
        return empty
    return joined(arrays) if empty.ndim > 1 else np.concatenate([empty, *arrays])  # rows of many numbers


def _tensor(array: NDArray[Any]) -> Tensor:
    if not (array.flags.c_contiguous and array.flags.writeable):
        array = array.copy()
    tensor = torch.from_numpy(array)
    if array.dtype in _AS_THEY_ARE:
        return tensor
    return tensor.float() if tensor.is_floating_point() else tensor.long()  # half floats take numpy 20 times as long
