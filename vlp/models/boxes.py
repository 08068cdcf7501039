"""Boxes as numbers that a projection reads.

Shape suffixes: R boxes; F frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor


def box_numbers(boxes_R4: Tensor, numbers: int) -> Tensor:
    """Boxes as 4, 5 (with area) or 7 numbers (with width, height, area), [R, numbers]."""
    if numbers == 4:
        return boxes_R4
    width_R2_height = boxes_R4[:, 2:] - boxes_R4[:, :2]
    area_R1 = width_R2_height.prod(dim=1, keepdim=True)
    return torch.cat([boxes_R4, area_R1] if numbers == 5 else [boxes_R4, width_R2_height, area_R1], dim=1)


def sine_numbers(boxes_R4: Tensor, frequencies: int) -> Tensor:
    """Centre and size of boxes as sines, then cosines, of each of the four numbers, [R, 8 F].

    A number is scaled to 0..100 and divided by 1000 ** (k / F), k = 0 .. F - 1.

    Source: Hu et al. 2018 (arXiv 1711.11575), section 3.2, with the numbers of Su et al. 2020 (arXiv 1908.08530).
    """
    centre_R2 = (boxes_R4[:, :2] + boxes_R4[:, 2:]) / 2
    size_R2 = boxes_R4[:, 2:] - boxes_R4[:, :2]
    place_R4 = 100 * torch.cat([centre_R2, size_R2], dim=1)
    scale_F = 1000 ** (torch.arange(frequencies, dtype=boxes_R4.dtype, device=boxes_R4.device) / frequencies)
    angle_R4F = place_R4[:, :, None] / scale_F
    return torch.cat([angle_R4F.sin(), angle_R4F.cos()], dim=2).flatten(1)
