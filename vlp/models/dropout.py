"""Dropout. On a CPU with masks of its own making: torch draws a number in 8 ns there (2.15), and a base model's step
drew for a twentieth of its time; sixteen bits of a 64-bit draw take a twentieth of that, and a mask takes a byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.models.kernels import kind_of

_STEPS = 1 << 16
"""Probabilities are multiples of one over this (0.1 becomes 0.100006); what is kept is scaled by what really is."""


def keep_mask(count: int, probability: float, like: Tensor) -> tuple[Tensor, float]:
    """Which of so many numbers are kept, 1 or 0 as uint8 [count] on the CPU, and the factor for those that are.

    torch's own generator decides, so that seeding it and recomputation in backward hold: it seeds numpy's SFC64, which
    draws in half the time; and numpy compares, in a sixth of the time. Bytes and not bool, by which torch multiplies in
    twice the time.
    """
    kept = min(max(round((1 - probability) * _STEPS), 1), _STEPS - 1)
    if like.is_meta:
        return like.new_empty(count, dtype=torch.uint8), _STEPS / kept
    draws = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw(-(-count // 4)).view(np.int16)[:count]
    mask = np.less(draws, np.int16(kept - _STEPS // 2))
    return torch.from_numpy(mask.view(np.uint8)), _STEPS / kept


class _Dropped(torch.autograd.Function):
    """x where it is kept, scaled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        mask, ctx.factor = keep_mask(x.numel(), probability, x)
        mask = mask.view(x.shape)
        ctx.save_for_backward(mask)
        return torch.mul(x, mask).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.mul(grads[0], mask).mul_(ctx.factor), None


class _Added(torch.autograd.Function):
    """x and what is kept of an update, in one tensor more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, update: Tensor, probability: float) -> Tensor:
        mask, ctx.factor = keep_mask(update.numel(), probability, update)
        mask = mask.view(update.shape)
        ctx.save_for_backward(mask)
        kept = torch.mul(update, mask)
        return torch.add(x, kept, alpha=ctx.factor, out=kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (mask,) = ctx.saved_tensors
        return grads[0], torch.mul(grads[0], mask).mul_(ctx.factor), None


def dropped(x: Tensor, probability: float, training: bool) -> Tensor:
    """x with each number dropped with a probability, and the others scaled up."""
    if training and probability > 0 and kind_of(x) == "cpu":
        return _Dropped.apply(x, probability)  # type: ignore[no-any-return]
    return F.dropout(x, probability, training)


def added(x: Tensor, update: Tensor, probability: float, training: bool) -> Tensor:
    """x + dropped(update)."""
    if training and probability > 0 and kind_of(x) == "cpu" and x.dtype == update.dtype:
        return _Added.apply(x, update, probability)  # type: ignore[no-any-return]
    return x + F.dropout(update, probability, training)
