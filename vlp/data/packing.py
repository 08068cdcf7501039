"""Packed sequences: tokens of all examples one after the other, with the indices that attention needs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlp.types import Packing


def pack(lengths: Sequence[int]) -> Packing:
    """The packing of sequences with these lengths (zero allowed)."""
    lengths_B = torch.tensor(lengths, dtype=torch.int64)
    starts_B1 = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    torch.cumsum(lengths_B, 0, out=starts_B1[1:])
    longest = max(lengths, default=0)
    example_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths_B)
    within_N = within(lengths_B, starts_B1)
    uniform = all(length == longest for length in lengths)
    return Packing(
        lengths=tuple(lengths),
        lengths_B=lengths_B,
        starts_B1=starts_B1.to(torch.int32),
        longest=longest,
        rows_N=example_N * longest + within_N,
        valid_BL=None if uniform else torch.arange(longest)[None, :] < lengths_B[:, None],
    )


def within(lengths_B: Tensor, starts_B1: Tensor) -> Tensor:
    """Place of each packed token inside its own sequence, [N]."""
    return torch.arange(int(starts_B1[-1])) - torch.repeat_interleave(starts_B1[:-1], lengths_B)


def join(text: Packing, image: Packing) -> tuple[Packing, Tensor, Tensor]:
    """The packing of each example's text followed by its image.

    Returns:
        the joint packing; for each joint row its row in [text_N ; image_M]; and the inverse permutation.
    """
    joint = pack([t + i for t, i in zip(text.lengths, image.lengths, strict=True)])
    starts_B = joint.starts_B1[:-1].to(torch.int64)
    text_rows_N = torch.repeat_interleave(starts_B, text.lengths_B) + within(text.lengths_B, text.starts_B1.long())
    image_rows_M = torch.repeat_interleave(starts_B + text.lengths_B, image.lengths_B)
    image_rows_M = image_rows_M + within(image.lengths_B, image.starts_B1.long())
    split_rows_J = torch.cat([text_rows_N, image_rows_M])
    joint_rows_J = torch.empty_like(split_rows_J)
    joint_rows_J[split_rows_J] = torch.arange(len(split_rows_J))
    return joint, joint_rows_J, split_rows_J
