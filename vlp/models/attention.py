"""Attention over packed sequences, behind one door: `attend`.

Shape suffixes: Q query tokens, K key tokens of the whole batch; A heads; D width of a head; B examples; L longest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlp.models.dropout import dropped
from vlp.models.eachexample import attend_each, fits
from vlp.models.kernels import kind_of, product_type
from vlp.models.linear import Linear
from vlp.types import Packing

Implementation = Literal["sdpa", "reference"]


@dataclass(frozen=True, slots=True)
class Looked:
    """Who looked at whom in one call of `attend`."""

    queries: Packing
    keys: Packing
    weights_BALL: Tensor
    """Attention weights, [B, A, longest query, longest key], in fp32; zero for an example without keys, and no number
    to rely on where either is padding."""


_WATCHER: ContextVar[Callable[[Looked], None] | None] = ContextVar("_WATCHER", default=None)


@contextmanager
def watched(watcher: Callable[[Looked], None]) -> Iterator[None]:
    """Within it, the watcher is told the weights of each call of `attend`. The fused kernels keep none, so they are
    computed a second time; results stay what they are."""
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def attend(
    query_QAD: Tensor,
    key_KAD: Tensor,
    value_KAD: Tensor,
    queries: Packing,
    keys: Packing,
    *,
    bias: Tensor | None = None,
    may_look: Tensor | None = None,
    dropout: float = 0.0,
    implementation: Implementation = "sdpa",
) -> Tensor:
    """Softmax attention of each example's queries to the same example's keys.

    Args:
        query_QAD: packed queries, [Q, A, D]; `queries` says which rows belong to which example.
        key_KAD, value_KAD: packed keys and values, [K, A, D], with `keys`.
        bias: added to the scores, [B, A, longest query, longest key].
        may_look: False where a query does not see a key of its example, [B, 1, longest query, longest key].
        dropout: probability of dropping an attention weight.
        implementation: `sdpa` is torch's fused kernel, and on a CPU, where nothing but padding is hidden and examples
            are not tiny, one example after the other; `reference` is the formula, for tests.
    Returns:
        [Q, A, D]; zero for a query that sees no key.
    """
    watcher = _WATCHER.get()
    if queries.tokens == 0 or keys.tokens == 0:
        if watcher is not None:
            nothing = query_QAD.new_zeros(len(queries), query_QAD.shape[1], queries.longest, keys.longest)
            watcher(Looked(queries, keys, nothing.float()))
        # Nothing to compute, but every parameter must stay in the graph: ZeRO counts on a gradient for each.
        unused = key_KAD.sum() + value_KAD.sum() + (0 if bias is None else bias.sum())
        return query_QAD * 0 + unused * 0
    each = implementation == "sdpa" and bias is None and may_look is None and fits(query_QAD, queries, keys)
    if each and watcher is None:
        return attend_each(query_QAD, key_KAD, value_KAD, queries, keys, dropout)
    given = query_QAD.dtype
    query_QAD, key_KAD, value_KAD = (x.to(product_type(x)) for x in (query_QAD, key_KAD, value_KAD))
    bias = None if bias is None else bias.to(product_type(bias))
    padded = (_pad(query_QAD, queries), _pad(key_KAD, keys), _pad(value_KAD, keys))
    seeing = None
    if may_look is not None:
        # A query that sees nothing looks at everything, and what it finds is thrown away: no softmax over nothing.
        seeing = may_look.any(-1, keepdim=True)
        may_look = may_look | ~seeing
    mask = _mask(keys, bias, may_look)
    if watcher is not None:
        weights_BALL = _weights(padded[0], padded[1], mask, keys)
        watcher(Looked(queries, keys, weights_BALL if seeing is None else weights_BALL * seeing))
    if each:
        return attend_each(query_QAD, key_KAD, value_KAD, queries, keys, dropout).to(given)
    out_BALD = _IMPLEMENTATIONS[implementation](*padded, mask, dropout)
    return _unpad(out_BALD if seeing is None else out_BALD * seeing, queries).to(given)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, keys: Packing) -> Tensor:
    """[B, A, longest query, longest key]."""
    scores = q.float() @ k.float().transpose(-2, -1) / q.shape[-1] ** 0.5
    return _masked(scores, mask).softmax(-1) * (keys.lengths_B > 0).to(q.device)[:, None, None, None]


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


def _mask(keys: Packing, bias: Tensor | None, may_look: Tensor | None) -> Tensor | None:
    """True where a query may look, [B, 1, 1 or L, L]; with a bias, that where it may look and -inf where not,
    [B, A, L, L].

    A row without keys sees its padding, whose values are zero.
    """
    if keys.valid_BL is not None:
        valid = (keys.valid_BL | (keys.lengths_B == 0)[:, None])[:, None, None, :]
        may_look = valid if may_look is None else may_look & valid
    if bias is None or may_look is None:
        return may_look if bias is None else bias
    return bias.masked_fill(~may_look, float("-inf"))


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    # Torch's blocked CPU kernel is slow on short bf16 sequences: 3 to 8 times the unblocked one at 17 tokens, equal at
    # about 256 (torch 2.15). Elsewhere torch chooses well.
    short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] < 256
    if dropout and kind_of(q) == "cpu":  # torch would take the plain formula too, with slower draws
        return _reference(q, k, v, mask, dropout)
    with sdpa_kernel(SDPBackend.MATH) if short else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    scores = _masked(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, mask)
    return dropped(scores.softmax(-1), dropout, True) @ v


_IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]] = {
    "sdpa": _sdpa,
    "reference": _reference,
}


class _Spread(torch.autograd.Function):
    """Copy rows to their places among others that are filled. Backward is the one gather that undoes it."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, rows_N: Tensor, size: int, fill: float) -> Tensor:
        ctx.save_for_backward(rows_N)
        return x_ND.new_full((size, *x_ND.shape[1:]), fill).index_copy_(0, rows_N, x_ND)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (rows_N,) = ctx.saved_tensors
        return grads[0].index_select(0, rows_N), None, None, None


class _Collect(torch.autograd.Function):
    """Take rows out of others, each at most once. Backward writes each once, where autograd's own would add."""

    @staticmethod
    def forward(ctx: Any, x_PD: Tensor, rows_N: Tensor) -> Tensor:
        ctx.save_for_backward(rows_N)
        ctx.size = x_PD.shape[0]
        return x_PD.index_select(0, rows_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rows_N,) = ctx.saved_tensors
        grad_ND = grads[0]
        return grad_ND.new_zeros(ctx.size, *grad_ND.shape[1:]).index_copy_(0, rows_N, grad_ND), None


def _pad(x_NAD: Tensor, packing: Packing) -> Tensor:
    """[N, A, D] -> [B, A, L, D]."""
    size = len(packing) * packing.longest
    padded = x_NAD if packing.valid_BL is None else spread(x_NAD, packing.rows_N, size)
    return padded.view(len(packing), packing.longest, *x_NAD.shape[1:]).transpose(1, 2)


def _unpad(x_BALD: Tensor, packing: Packing) -> Tensor:
    """[B, A, L, D] -> [N, A, D]."""
    flat = x_BALD.transpose(1, 2).flatten(0, 1)
    return flat if packing.valid_BL is None else take(flat, packing.rows_N)


def take(x_ND: Tensor, rows_N: Tensor) -> Tensor:
    """Rows of x, in any order and each at most once, so that backward writes each once."""
    return _Collect.apply(x_ND, rows_N)  # type: ignore[no-any-return]


def spread(x_ND: Tensor, rows_N: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """The rows of x at their places among `size` rows, of which the others are filled; undoes `take`."""
    return _Spread.apply(x_ND, rows_N, size, fill)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Projections around `attend`.

    Args:
        width: width of the queries' stream, and of the output.
        heads: number of heads; `inner` must be divisible by it.
        context: width of the stream that is looked at (default: the same).
        inner: width of queries, keys and values together over the heads (default: `width`).
        bias: whether the projections to them have a bias.
    """

    def __init__(
        self, width: int, heads: int, *, context: int | None = None, inner: int | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        inner = inner or width
        self.heads = heads
        self.query = Linear(width, inner, bias=bias)
        self.key_value = Linear(context or width, 2 * inner, bias=bias)
        self.output = Linear(inner, width)

    def project_query(self, x_QH: Tensor) -> Tensor:
        """[Q, A, D]."""
        return self.query(x_QH).unflatten(-1, (self.heads, -1))  # type: ignore[no-any-return]

    def project_keys(self, x_KH: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each [K, A, D]."""
        key_KI, value_KI = self.key_value(x_KH).chunk(2, dim=-1)
        return key_KI.unflatten(-1, (self.heads, -1)), value_KI.unflatten(-1, (self.heads, -1))
