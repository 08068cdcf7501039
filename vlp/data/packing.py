"""Packed sequences: tokens of all examples one after the other, with the indices that attention needs.

Made with numpy, whose calls on small arrays take a quarter of torch's: a batch has thirty.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp.types import Packing


def pack(lengths: Sequence[int]) -> Packing:
    """The packing of sequences with these lengths (zero allowed)."""
    lengths_B = np.array(lengths, np.int64)
    longest = max(lengths, default=0)
    starts_B1 = starts_of(lengths_B)
    uniform = all(length == longest for length in lengths)
    return Packing(
        lengths=tuple(lengths),
        lengths_B=torch.from_numpy(lengths_B),
        starts_B1=torch.from_numpy(starts_B1.astype(np.int32)),
        longest=longest,
        rows_N=torch.from_numpy(_shifted(np.arange(len(lengths)) * longest - starts_B1[:-1], lengths_B)),
        valid_BL=None if uniform else torch.from_numpy(np.arange(longest)[None, :] < lengths_B[:, None]),
    )


def within(packing: Packing) -> Tensor:
    """Place of each packed token inside its own sequence, [N]."""
    lengths_B = packing.lengths_B.numpy()
    return torch.from_numpy(_shifted(-starts_of(lengths_B)[:-1], lengths_B))


def join(text: Packing, image: Packing) -> tuple[Packing, Tensor, Tensor]:
    """The packing of each example's text followed by its image.

    Returns:
        the joint packing; for each joint row its row in [text_N ; image_M]; and the inverse permutation.
    """
    joint = pack([t + i for t, i in zip(text.lengths, image.lengths, strict=True)])
    text_B, image_B = text.lengths_B.numpy(), image.lengths_B.numpy()
    # Before an example's text stand the images of those before it, before its image all texts up to its own.
    text_rows_N = _shifted(starts_of(image_B)[:-1], text_B)
    image_rows_M = _shifted(starts_of(text_B)[1:], image_B)
    split_rows_J = np.concatenate([text_rows_N, image_rows_M])
    joint_rows_J = np.empty_like(split_rows_J)
    joint_rows_J[split_rows_J] = np.arange(len(split_rows_J))
    return joint, torch.from_numpy(joint_rows_J), torch.from_numpy(split_rows_J)


def starts_of(lengths: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Where each sequence begins, and the end, [B + 1]."""
    starts_B1 = np.zeros(len(lengths) + 1, np.int64)
    np.asarray(lengths, np.int64).cumsum(out=starts_B1[1:])
    return starts_B1


def _shifted(by_B: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, .. over all sequences, with a number added in each, [N]."""
    shifted_N = by_B.repeat(lengths_B)
    shifted_N += np.arange(len(shifted_N))
    return shifted_N
