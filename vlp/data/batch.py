"""Examples into one packed batch: tokens one after the other, targets' positions shifted along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp.data.packing import join, pack, within
from vlp.types import (
    Batch,
    Example,
    Packing,
    PixelBatch,
    PixelInput,
    RegionBatch,
    RegionInput,
    Rows,
    Target,
    Targets,
    TextBatch,
)

WEIGHT = "weight"
"""Name of the target value that, where present, is summed into the count (a soft answer counts by its score)."""


@dataclass(frozen=True, slots=True)
class ImageForm:
    """What the image side of a batch looks like, so that a batch without images has the right shapes too."""

    kind: Literal["regions", "pixels"]
    width: int
    """Regions: numbers per region feature. Pixels: height and width of the square image."""


@dataclass(frozen=True, slots=True)
class TargetForm:
    """What the targets of one objective look like, so that a batch without any has the right shapes too."""

    rows: Rows
    """What positions count."""
    empty: Target
    """A target of zero rows whose arrays have the trailing shapes and types of real ones."""


def collate(examples: Sequence[Example], image: ImageForm, targets: Mapping[str, TargetForm]) -> Batch:
    """Pack examples (zero of them is fine) into one batch.

    Floating arrays become float32, integers int64, in inputs and targets alike.

    Args:
        examples: in the order they shall lie in.
        image: kind and width of the image side; examples without an image give it zero tokens.
        targets: the form of each objective's targets; every objective is present in the result, with zero rows if
            no example has a target for it.
    Raises:
        ValueError: an example has a target of an objective that `targets` does not list.
    """
    text = _text(examples)
    images = _regions(examples, image.width) if image.kind == "regions" else _pixels(examples, image.width)
    joint, joint_rows_J, split_rows_J = join(text.packing, images.packing)
    unknown = {name for example in examples for name in example.targets} - set(targets)
    if unknown:
        raise ValueError(f"targets without a form: {sorted(unknown)}")
    starts = {"text": text.packing.starts_B1, "image": images.packing.starts_B1}
    return Batch(
        text=text,
        image=images,
        joint=joint,
        joint_rows_J=joint_rows_J,
        split_rows_J=split_rows_J,
        targets={
            name: _targets(name, form, examples, starts.get(form.rows, torch.arange(len(examples) + 1)))
            for name, form in targets.items()
        },
        ids=tuple(example.id for example in examples),
    )


def _text(examples: Sequence[Example]) -> TextBatch:
    packing = pack([len(example.token_ids_T) for example in examples])
    ids = [example.token_ids_T for example in examples]
    return TextBatch(
        ids_N=_tensor(_joined(ids, np.zeros(0, np.int64))),
        positions_N=within(packing.lengths_B, packing.starts_B1.long()),
        packing=packing,
    )


def _regions(examples: Sequence[Example], width: int) -> RegionBatch:
    images = [example.image for example in examples if isinstance(example.image, RegionInput)]
    hidden = [np.zeros(len(image), np.bool_) if image.hidden_R is None else image.hidden_R for image in images]
    return RegionBatch(
        features_MD=_tensor(_joined([image.features_RD for image in images], np.zeros((0, width), np.float32))),
        boxes_M4=_tensor(_joined([image.boxes_R4 for image in images], np.zeros((0, 4), np.float32))),
        hidden_M=_tensor(_joined(hidden, np.zeros(0, np.bool_))),
        packing=_image_packing(examples),
    )


def _pixels(examples: Sequence[Example], size: int) -> PixelBatch:
    images = [example.image for example in examples if isinstance(example.image, PixelInput)]
    stacked = [image.pixels_3HW[None] for image in images]
    return PixelBatch(
        pixels_P3HW=_tensor(_joined(stacked, np.zeros((0, 3, size, size), np.float32))),
        packing=_image_packing(examples),
    )


def _image_packing(examples: Sequence[Example]) -> Packing:
    return pack([0 if example.image is None else len(example.image) for example in examples])


def _targets(name: str, form: TargetForm, examples: Sequence[Example], starts_B1: Tensor) -> Targets:
    found = [(row, example.targets[name]) for row, example in enumerate(examples) if name in example.targets]
    starts = starts_B1.tolist()
    positions = [target.positions + starts[row] for row, target in found]
    positions_K = _tensor(_joined(positions, form.empty.positions.astype(np.int64)))
    values = {
        key: _tensor(_joined([target.values[key] for _, target in found], empty))
        for key, empty in form.empty.values.items()
    }
    count = float(values[WEIGHT].sum(dtype=torch.float64)) if WEIGHT in values else float(len(positions_K))
    return Targets(positions_K, values, count)


def _joined(arrays: Sequence[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    """The arrays one after the other; `empty` (zero rows) stands in for none and fixes shape and type."""
    return np.concatenate([empty, *arrays]) if arrays else empty


def _tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype == np.bool_:
        wanted = array
    elif np.issubdtype(array.dtype, np.integer):
        wanted = array.astype(np.int64, copy=False)
    else:
        wanted = array.astype(np.float32, copy=False)
    return torch.from_numpy(np.ascontiguousarray(wanted if wanted.flags.writeable else wanted.copy()))
