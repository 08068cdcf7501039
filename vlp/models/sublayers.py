"""The sublayers that blocks are made of: attention, the feed-forward network, a bare norm; each with its residual.

Shape suffixes: Q query tokens, K key tokens; A heads; D width of a head; H width of a stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.models.attention import Attention, Implementation, attend
from vlp.models.blocks import BlockConfig, LayerConfig
from vlp.models.dropout import added
from vlp.models.linear import Linear
from vlp.types import Packing

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, slots=True)
class Habits:
    """What all sublayers of a model have in common."""

    dropout: float
    attention_dropout: float
    attention: Implementation

    def of(self, layer: LayerConfig) -> Habits:
        """These habits with the layer's own above them."""
        dropout = self.dropout if layer.dropout is None else layer.dropout
        attention = self.attention_dropout if layer.attention_dropout is None else layer.attention_dropout
        return Habits(dropout, attention, self.attention)


class Scale(nn.Module):
    """A learned gain per unit. A module of its own, since ZeRO gathers a module's parameters when it is called."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Residual(nn.Module):
    """A sublayer's residual: `norm(x + drop(f(x)))` (post) or `x + drop(f(norm(x)))` (pre)."""

    def __init__(self, layer: LayerConfig, block: BlockConfig, habits: Habits) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.width, eps=layer.eps)
        self.pre = layer.norm == "pre"
        self.habits = habits.of(layer)
        self.scale = nn.Identity() if block.layer_scale is None else Scale(layer.width, block.layer_scale)

    def enter(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.pre else x

    def leave(self, x: Tensor, update: Tensor) -> Tensor:
        total = added(x, self.scale(update), self.habits.dropout, self.training)
        return total if self.pre else self.norm(total)


@dataclass(frozen=True, slots=True)
class Looking:
    """What decides about a query's look at a key beside their product."""

    bias: Tensor | None = None
    """Added to the scores, [B, A, longest query, longest key]."""
    may_look: Tensor | None = None
    """False where a query does not see a key, [B, 1, longest query, longest key]."""


class AttentionSublayer(Residual):
    """Attention with its residual, for one modality or shared by both."""

    def __init__(self, layer: LayerConfig, context: LayerConfig, block: BlockConfig, habits: Habits) -> None:
        super().__init__(layer, block, habits)
        inner = block.attention_width or layer.width
        self.attention = Attention(layer.width, layer.heads, context=context.width, inner=inner, bias=block.qkv_bias)
        self.inner_norm = nn.LayerNorm(inner, eps=layer.eps) if block.inner_norm else None

    def forward(
        self, x: Tensor, packing: Packing, context: Tensor | None, context_packing: Packing, looking: Looking
    ) -> Tensor:
        """x [rows, H]; `context` is the other stream for a cross sublayer, None to look at x itself."""
        entered = self.enter(x)
        keys = self.attention.project_keys(entered if context is None else context)
        query = self.attention.project_query(entered)
        return self.finish(x, self.attend(query, *keys, packing, context_packing, looking))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, looking: Looking) -> Tensor:
        return attend(
            q,
            k,
            v,
            queries,
            keys,
            bias=looking.bias,
            may_look=looking.may_look,
            dropout=self.habits.attention_dropout if self.training else 0.0,
            implementation=self.habits.attention,
        )

    def finish(self, x: Tensor, attended_QAD: Tensor) -> Tensor:
        attended = attended_QAD.flatten(-2)
        if self.inner_norm is not None:
            attended = self.inner_norm(attended)
        return self.leave(x, self.attention.output(attended))


class FeedForward(Residual):
    """The position-wise network with its residual."""

    def __init__(self, layer: LayerConfig, block: BlockConfig, habits: Habits) -> None:
        super().__init__(layer, block, habits)
        self.up = Linear(layer.width, layer.ffn)
        self.down = Linear(layer.ffn, layer.width)
        self.activation = ACTIVATIONS[layer.activation]
        self.inner_norm = nn.LayerNorm(layer.ffn, eps=layer.eps) if block.inner_norm else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.up(self.enter(x)))
        return self.leave(x, self.down(inner if self.inner_norm is None else self.inner_norm(inner)))


class Norm(nn.Module):
    """A bare LayerNorm, as at the end of a pre-norm tower."""

    def __init__(self, layer: LayerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.width, eps=layer.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]
