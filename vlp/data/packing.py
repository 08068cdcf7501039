"""Packed sequences: tokens of all examples one after the other, with the indices that attention needs.

Made with numpy, whose calls on small arrays take a quarter of torch's: a batch has thirty.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp.types import Packing


def pack(lengths: Sequence[int]) -> Packing:
    """The packing of sequences with these lengths (zero allowed)."""
    lengths_B = np.array(lengths, np.int64)
    longest = max(lengths, default=0)
    within_N = _within(lengths_B)
    uniform = all(length == longest for length in lengths)
    return Packing(
        lengths=tuple(lengths),
        lengths_B=torch.from_numpy(lengths_B),
        starts_B1=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths_B)]).astype(np.int32)),
        longest=longest,
        rows_N=torch.from_numpy(np.repeat(np.arange(len(lengths)) * longest, lengths_B) + within_N),
        valid_BL=None if uniform else torch.from_numpy(np.arange(longest)[None, :] < lengths_B[:, None]),
    )


def within(packing: Packing) -> Tensor:
    """Place of each packed token inside its own sequence, [N]."""
    return torch.from_numpy(_within(packing.lengths_B.numpy()))


def join(text: Packing, image: Packing) -> tuple[Packing, Tensor, Tensor]:
    """The packing of each example's text followed by its image.

    Returns:
        the joint packing; for each joint row its row in [text_N ; image_M]; and the inverse permutation.
    """
    joint = pack([t + i for t, i in zip(text.lengths, image.lengths, strict=True)])
    starts_B = joint.starts_B1.numpy()[:-1].astype(np.int64)
    text_B, image_B = text.lengths_B.numpy(), image.lengths_B.numpy()
    text_rows_N = np.repeat(starts_B, text_B) + _within(text_B)
    image_rows_M = np.repeat(starts_B + text_B, image_B) + _within(image_B)
    split_rows_J = np.concatenate([text_rows_N, image_rows_M])
    joint_rows_J = np.empty_like(split_rows_J)
    joint_rows_J[split_rows_J] = np.arange(len(split_rows_J))
    return joint, torch.from_numpy(joint_rows_J), torch.from_numpy(split_rows_J)


def _within(lengths_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, .. inside each sequence."""
    ends_B = np.cumsum(lengths_B)
    return np.arange(int(ends_B[-1]) if len(ends_B) else 0) - np.repeat(ends_B - lengths_B, lengths_B)
