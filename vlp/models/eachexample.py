"""Attention on a CPU, an example at a time: exact lengths, nothing padded, gathered or masked.

A CPU gains nothing by one large call: at 32 examples of 24 to 114 tokens and 12 heads of 64, with dropout, forward and
backward take 47 ms on one core, and 165 ms as torch's fused attention over the padded layout, in fp32.

Shape suffixes: Q query tokens, K key tokens of the whole batch; A heads; D width of a head; S scores of all examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from vlp.models.dropout import keep_mask
from vlp.models.kernels import kind_of, product_type
from vlp.types import Packing

_FEWEST = 4096
"""Scores of an example, over its heads, below which calls cost more than padding: 12 heads of 18 x 18 tokens."""
_LONGEST = 1024
"""Keys above which scores are not kept, and torch's fused kernel, which keeps none, is better."""
_LARGE, _SHAPES = 128 * 128, 12
"""Scores of a head from which an example's products are faster below fp32 than in it, and of how many shapes at most.
oneDNN makes six kernels for each shape, keeps 128, and would make them anew in each block. 64 texts of 8 to 20 words
looking at 10 to 100 regions, forward and backward on two cores: 52 ms in bf16 and 34 in fp32; 8 texts with 145 patches:
23 and 30."""


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


class _EachExample(torch.autograd.Function):
    """Keeps queries, keys, values, the weights of real pairs of tokens, and a byte for each where some are dropped."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float) -> Tensor:
        ctx.packings = queries, keys
        count = q.shape[1] * _products(queries, keys)
        kind = _kind(q, queries, keys)
        q_, k_, v_ = (x.to(kind) for x in (q, k, v))
        weights_S = q_.new_empty(count)
        mask_S: Tensor | None = None
        ctx.scale, ctx.factor = q.shape[2] ** -0.5, 1.0
        if dropout:
            mask_S, ctx.factor = keep_mask(count, dropout, q)
        (out,) = _blank(queries, keys, q_)
        examples = _examples(queries, keys, (q_, out), (k_, v_), (weights_S, mask_S))
        for (q_, out_), (k_, v_), (weights, mask) in examples:
            weights.baddbmm_(q_, k_.transpose(1, 2), beta=0, alpha=ctx.scale)
            torch.softmax(weights, -1, out=weights)
            kept = weights if mask is None else weights * mask
            _write(out_, kept, v_, ctx.factor)
        ctx.save_for_backward(q, k, v, weights_S, mask_S)
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights_S, mask_S = ctx.saved_tensors
        given, kind = q.dtype, weights_S.dtype
        q, k, v, grad = (x.to(kind) for x in (q, k, v, grads[0]))
        queries, keys = ctx.packings
        dq, dk, dv = _blank(queries, keys, q, k, v)
        examples = _examples(queries, keys, (q, grad, dq), (k, v, dk, dv), (weights_S, mask_S))
        for (q_, grad_, dq_), (k_, v_, dk_, dv_), (weights, mask) in examples:
            d_weights = torch.bmm(grad_, v_.transpose(1, 2))
            kept = weights
            if mask is not None:
                kept = weights * mask
                d_weights.mul_(mask)
            _write(dv_, kept.transpose(1, 2), grad_, ctx.factor)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            _write(dq_, d_scores, k_, ctx.factor * ctx.scale)
            _write(dk_, d_scores.transpose(1, 2), q_, ctx.factor * ctx.scale)
        return dq.to(given), dk.to(given), dv.to(given), None, None, None


def _kind(x: Tensor, queries: Packing, keys: Packing) -> torch.dtype:
    """The precision of the products, and of the weights that are kept."""
    shapes = set(zip(queries.lengths, keys.lengths, strict=True))
    if len(shapes) <= _SHAPES and _products(queries, keys) >= _LARGE * len(queries):
        return product_type(x)
    return torch.promote_types(x.dtype, torch.float32)


def _write(out: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """A product with a factor, in its place between the rows of other examples.

    In fp32 torch multiplies one head after the other where it is to write there: 12 heads of 65 x 65 by 65 x 64 take
    77 us so, and 55 made apart and copied (two cores).
    """
    if out.dtype == torch.float32:
        out.copy_(torch.baddbmm(out, left, right, beta=0, alpha=factor))
    else:
        out.baddbmm_(left, right, beta=0, alpha=factor)


def _examples(
    queries: Packing,
    keys: Packing,
    of_queries: Sequence[Tensor],
    of_keys: Sequence[Tensor],
    of_scores: Sequence[Tensor | None],
) -> Iterator[tuple[Any, Any, Any]]:
    """Views of each example that has queries and keys, as many as there are tensors of a kind: its rows by head,
    [A, L, D], and its scores, [A, Q, K], or None."""
    shapes = [(of_queries[0].shape[1], q, k) for q, k in zip(queries.lengths, keys.lengths, strict=True)]
    rows = zip(*(_cut(x.transpose(0, 1), queries.lengths, 1) for x in of_queries), strict=True)
    columns = zip(*(_cut(x.transpose(0, 1), keys.lengths, 1) for x in of_keys), strict=True)
    sizes = [math.prod(shape) for shape in shapes]
    scores = zip(*(repeat(None) if x is None else _cut(x, sizes, 0) for x in of_scores), strict=False)
    for shape, by_query, by_key, flat in zip(shapes, rows, columns, scores, strict=True):
        if math.prod(shape):
            yield by_query, by_key, [None if x is None else x.view(shape) for x in flat]


def _cut(x: Tensor, sizes: Sequence[int], dim: int) -> Sequence[Tensor]:
    """Views in one call, where slicing makes one after the other, each in microseconds."""
    return torch.split(x, list(sizes), dim)


def _blank(queries: Packing, keys: Packing, *like: Tensor) -> list[Tensor]:
    """Packed tensors to write into; zeros unless every example with one has the other, so that all is written."""
    whole = all(bool(q) == bool(k) for q, k in zip(queries.lengths, keys.lengths, strict=True))
    return [x.new_empty(x.shape) if whole else x.new_zeros(x.shape) for x in like]
