"""Attention on a CPU, an example at a time: exact lengths, nothing padded, gathered or masked.

A CPU gains nothing by one large call: at 32 examples of 24 to 114 tokens and 12 heads of 64, with dropout, forward and
backward take 47 ms on one core, and 165 ms as torch's fused attention over the padded layout (fp32 and bf16 alike).

Shape suffixes: Q query tokens, K key tokens of the whole batch; A heads; D width of a head; S scores of all examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vlp.models.dropout import keep_mask
from vlp.models.kernels import kind_of
from vlp.types import Packing

_FEWEST = 4096
"""Scores of an example, over its heads, below which calls cost more than padding: 12 heads of 18 x 18 tokens."""
_LONGEST = 1024
"""Keys above which scores are not kept, and torch's fused kernel, which keeps none, is better."""


def fits(query_QAD: Tensor, queries: Packing, keys: Packing) -> bool:
    """Whether it is the fast way."""
    if kind_of(query_QAD) != "cpu" or keys.longest > _LONGEST:
        return False
    return query_QAD.shape[1] * _products(queries, keys) >= _FEWEST * len(queries)


def attend_each(
    query_QAD: Tensor, key_KAD: Tensor, value_KAD: Tensor, queries: Packing, keys: Packing, dropout: float
) -> Tensor:
    """Softmax attention of each example's queries to its keys, [Q, A, D]; zero for an example without keys."""
    return _EachExample.apply(query_QAD, key_KAD, value_KAD, queries, keys, dropout)  # type: ignore[no-any-return]


def _products(queries: Packing, keys: Packing) -> int:
    return sum(q * k for q, k in zip(queries.lengths, keys.lengths, strict=True))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an example's rows and scores lie."""

    queries: slice
    keys: slice
    scores: slice
    shape: tuple[int, int, int]
    """Of its scores: heads, queries, keys."""


def _places(queries: Packing, keys: Packing, heads: int) -> Iterator[_Place]:
    """Of the examples that have queries and keys."""
    ends = [list(accumulate(packing.lengths)) for packing in (queries, keys)]
    start = 0
    for q, k, q_end, k_end in zip(queries.lengths, keys.lengths, *ends, strict=True):
        if q and k:
            end = start + heads * q * k
            yield _Place(slice(q_end - q, q_end), slice(k_end - k, k_end), slice(start, end), (heads, q, k))
            start = end


def _heads(x_NAD: Tensor, rows: slice) -> Tensor:
    """An example's rows by head, a view [A, L, D]."""
    return x_NAD[rows].transpose(0, 1)


class _EachExample(torch.autograd.Function):
    """Keeps queries, keys, values, the weights of real pairs of tokens, and a byte for each where some are dropped."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float) -> Tensor:
        ctx.places = tuple(_places(queries, keys, q.shape[1]))
        ctx.whole = all(bool(q) == bool(k) for q, k in zip(queries.lengths, keys.lengths, strict=True))
        count = ctx.places[-1].scores.stop if ctx.places else 0
        weights_S = q.new_empty(count)
        mask_S: Tensor | None = None
        ctx.factor = 1.0
        if dropout:
            mask_S, ctx.factor = keep_mask(count, dropout, q)
        q = q * q.shape[2] ** -0.5  # once, instead of all scores
        (out,) = _blank(ctx.whole, q)
        for place in ctx.places:
            scores = torch.bmm(_heads(q, place.queries), _heads(k, place.keys).transpose(1, 2))
            weights = torch.softmax(scores, -1, out=_of(weights_S, place))
            kept = weights if mask_S is None else torch.mul(weights, _of(mask_S, place), out=scores)
            torch.bmm(kept, _heads(v, place.keys), out=_heads(out, place.queries))
        if mask_S is not None:
            out.mul_(ctx.factor)
        ctx.save_for_backward(q, k, v, weights_S, mask_S)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights_S, mask_S = ctx.saved_tensors
        grad = grads[0] if mask_S is None else grads[0] * ctx.factor
        dq, dk, dv = _blank(ctx.whole, q, k, v)
        for place in ctx.places:
            out, weights = _heads(grad, place.queries), _of(weights_S, place)
            d_weights = torch.bmm(out, _heads(v, place.keys).transpose(1, 2))
            kept = weights
            if mask_S is not None:
                kept = torch.mul(weights, _of(mask_S, place))
                d_weights.mul_(_of(mask_S, place))
            torch.bmm(kept.transpose(1, 2), out, out=_heads(dv, place.keys))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            torch.bmm(d_scores, _heads(k, place.keys), out=_heads(dq, place.queries))
            torch.bmm(d_scores.transpose(1, 2), _heads(q, place.queries), out=_heads(dk, place.keys))
        return dq.mul_(q.shape[2] ** -0.5), dk, dv, None, None, None


def _blank(whole: bool, *like: Tensor) -> list[Tensor]:
    """Packed tensors to write into; zeros unless every example with one has the other, so that all is written."""
    return [x.new_empty(x.shape) if whole else x.new_zeros(x.shape) for x in like]


def _of(flat_S: Tensor, place: _Place) -> Tensor:
    return flat_S[place.scores].view(place.shape)
