"""The one encoder: a list of blocks, each a list of sublayers on the text stream, the image stream or both.

    self    a modality attends to itself
    cross   each modality attends to the other, as that was when the block began
    joint   both attend to both, in one softmax over the concatenated keys
    ffn     the feed-forward network

`share` names the sublayers that use one set of weights for both modalities. VOLTA (Bugliarello et al. 2021,
arXiv 2011.15124, section 3) shows that single- and dual-stream encoders are choices of this kind.

Shape suffixes: N text tokens, M image tokens, J = N + M; H width of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from vlp.config import Config
from vlp.models.attention import Attention, Implementation, attend, permute
from vlp.types import Batch, Packing, Stream

SublayerName = Literal["self", "cross", "joint", "ffn"]
Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}


class LayerConfig(Config):
    """Sizes and habits of a stream's blocks. Defaults are BERT's (Devlin et al. 2019)."""

    width: int = Field(768, gt=0)
    """Width of the hidden states."""
    heads: int = Field(12, gt=0)
    """Attention heads; `width` must be divisible by it."""
    ffn: int = Field(3072, gt=0)
    """Inner width of the feed-forward network."""
    norm: Literal["post", "pre"] = "post"
    """Where LayerNorm stands: after the residual sum, or before the sublayer."""
    eps: float = Field(1e-12, gt=0)
    """LayerNorm's epsilon."""
    activation: Activation = "gelu"
    """The feed-forward network's non-linearity; gelu is the exact one (erf)."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self


class BlockConfig(Config):
    """One line of `encoder:`. What is not given comes from the stream's `layer`."""

    stream: Literal["text", "image", "both"]
    """The stream that the block changes."""
    sublayers: tuple[SublayerName, ...] = Field(min_length=1)
    """What happens, in order."""
    share: tuple[SublayerName, ...] = ()
    """Sublayers with one set of weights for both modalities."""
    repeat: int = Field(1, gt=0)
    """How many such blocks follow each other, each with its own weights."""
    heads: int | None = Field(None, gt=0)
    ffn: int | None = Field(None, gt=0)
    norm: Literal["post", "pre"] | None = None
    eps: float | None = Field(None, gt=0)
    activation: Activation | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        surplus = [name for name in self.share if name not in self.sublayers]
        if surplus:
            raise ValueError(f"share names '{surplus[0]}', which is not among the sublayers")
        if self.stream != "both" and (self.share or "joint" in self.sublayers):
            raise ValueError("share and joint need stream: both")
        if len(set(self.sublayers)) < len(self.sublayers):
            raise ValueError("a sublayer stands twice in one block; write two blocks")
        return self

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("text", "image") if self.stream == "both" else (self.stream,)

    def layer(self, stream: LayerConfig) -> LayerConfig:
        """The stream's layer with this block's own settings on top."""
        own = {name: getattr(self, name) for name in ("heads", "ffn", "norm", "eps", "activation")}
        return LayerConfig(**{**stream.model_dump(), **{k: v for k, v in own.items() if v is not None}})


def check_block(block: BlockConfig, layers: Mapping[Stream, LayerConfig]) -> None:
    """Whether a block fits the streams' layers.

    Raises:
        ValueError: it does not; the message says why.
    """
    for stream in block.streams:
        if block.heads is not None and layers[stream].width % block.heads:
            raise ValueError(
                f"width {layers[stream].width} of the {stream} stream is not divisible by heads {block.heads}"
            )
    text, image = layers["text"], layers["image"]
    for name in block.sublayers:
        if (name == "joint" or name in block.share) and text.width != image.width:
            reason = "joint" if name == "joint" else f"share: {name}"
            raise ValueError(f"{reason} needs streams of one width, but text is {text.width} and image {image.width}")
        for key in ("ffn", "activation", "norm", "eps") if name == "ffn" else ("heads", "norm", "eps"):
            theirs = [getattr(block.layer(layer), key) for layer in (text, image)]
            if name in block.share and theirs[0] != theirs[1]:
                raise ValueError(
                    f"share: {name} needs one {key} for both streams, but text has {theirs[0]} and image {theirs[1]}"
                )
        if name == "joint" and block.heads is None and text.heads != image.heads:
            raise ValueError(f"joint needs one number of heads, but text has {text.heads} and image {image.heads}")


@dataclass(frozen=True, slots=True)
class Habits:
    """What all sublayers of a model have in common."""

    dropout: float
    attention_dropout: float
    attention: Implementation


class States:
    """The two streams on their way through the encoder: apart, or one tensor ordered by example.

    A run of shared blocks works on one tensor, so each linear is one matrix product and attention gathers nothing;
    the change of form happens once on each side of such a run.
    """

    def __init__(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> None:
        self.batch = batch
        self._apart: dict[Stream, Tensor] | None = {"text": text_NH, "image": image_MH}
        self._joint_JH: Tensor | None = None

    def apart(self) -> dict[Stream, Tensor]:
        if self._apart is None:
            assert self._joint_JH is not None
            both = permute(self._joint_JH, self.batch.split_rows_J)
            sizes = [self.batch.text.packing.tokens, self.batch.image.packing.tokens]
            text_NH, image_MH = torch.split(both, sizes)
            self._apart = {"text": text_NH, "image": image_MH}
        return self._apart

    def joint(self) -> Tensor:
        if self._joint_JH is None:
            self._joint_JH = interleave(self.apart(), self.batch)
        return self._joint_JH

    def set_joint(self, joint_JH: Tensor) -> None:
        self._joint_JH, self._apart = joint_JH, None

    def set_apart(self, states: dict[Stream, Tensor]) -> None:
        self._apart, self._joint_JH = states, None

    def packing(self, stream: Stream) -> Packing:
        return self.batch.text.packing if stream == "text" else self.batch.image.packing


def interleave(apart: dict[Stream, Tensor], batch: Batch) -> Tensor:
    """Text and image rows, [N, ...] and [M, ...], as joint rows [J, ...]."""
    return permute(torch.cat([apart["text"], apart["image"]]), batch.joint_rows_J)


class Residual(nn.Module):
    """A sublayer's residual: `norm(x + drop(f(x)))` (post) or `x + drop(f(norm(x)))` (pre)."""

    def __init__(self, layer: LayerConfig, habits: Habits) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(layer.width, eps=layer.eps)
        self.pre = layer.norm == "pre"
        self.dropout = habits.dropout

    def enter(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.pre else x

    def leave(self, x: Tensor, update: Tensor) -> Tensor:
        total = x + F.dropout(update, self.dropout, self.training)
        return total if self.pre else self.norm(total)


class AttentionSublayer(Residual):
    """Attention with its residual, for one modality or shared by both."""

    def __init__(self, layer: LayerConfig, context: LayerConfig, habits: Habits) -> None:
        super().__init__(layer, habits)
        self.attention = Attention(layer.width, layer.heads, context=context.width)
        self.habits = habits

    def forward(self, x: Tensor, packing: Packing, context: Tensor | None, context_packing: Packing) -> Tensor:
        """x [rows, H]; `context` is the other stream for a cross sublayer, None to look at x itself."""
        entered = self.enter(x)
        keys = self.attention.project_keys(entered if context is None else context)
        return self.finish(x, self.attend(self.attention.project_query(entered), *keys, packing, context_packing))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing) -> Tensor:
        drop = self.habits.attention_dropout if self.training else 0.0
        return attend(q, k, v, queries, keys, dropout=drop, implementation=self.habits.attention)

    def finish(self, x: Tensor, attended_QAD: Tensor) -> Tensor:
        return self.leave(x, self.attention.output(attended_QAD.flatten(-2)))


class FeedForward(Residual):
    """The position-wise network with its residual."""

    def __init__(self, layer: LayerConfig, habits: Habits) -> None:
        super().__init__(layer, habits)
        self.up = nn.Linear(layer.width, layer.ffn)
        self.down = nn.Linear(layer.ffn, layer.width)
        self.activation = ACTIVATIONS[layer.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(x, self.down(self.activation(self.up(self.enter(x)))))


class Sublayer(nn.Module):
    """One sublayer of a block over its streams: weights per modality, or one set under the name `both`."""

    def __init__(
        self, name: SublayerName, block: BlockConfig, layers: dict[Stream, LayerConfig], habits: Habits
    ) -> None:
        super().__init__()
        self.name = name
        self.streams = block.streams
        self.shared = name in block.share
        owners: dict[str, Stream] = {"both": "text"} if self.shared else {stream: stream for stream in block.streams}
        self.weights = nn.ModuleDict({owner: self._make(stream, layers, habits) for owner, stream in owners.items()})

    def _make(self, stream: Stream, layers: dict[Stream, LayerConfig], habits: Habits) -> nn.Module:
        if self.name == "ffn":
            return FeedForward(layers[stream], habits)
        return AttentionSublayer(layers[stream], layers[_other(stream) if self.name == "cross" else stream], habits)

    def of(self, stream: Stream) -> nn.Module:
        return self.weights["both" if self.shared else stream]

    @property
    def on_joint(self) -> bool:
        """Whether this sublayer can work on one tensor that holds both streams."""
        return self.shared and self.name in ("joint", "ffn")

    def forward(self, states: States, before: dict[Stream, Tensor]) -> None:
        """Change the states in place; `before` holds them as the block found them."""
        if self.on_joint:
            joint, packing = states.joint(), states.batch.joint
            module = self.weights["both"]
            states.set_joint(module(joint) if self.name == "ffn" else module(joint, packing, None, packing))
        elif self.name == "joint":
            self._joint_apart(states)
        else:
            states.set_apart({**states.apart(), **{s: self._apart(s, states, before) for s in self.streams}})

    def _apart(self, stream: Stream, states: States, before: dict[Stream, Tensor]) -> Tensor:
        x, packing, module = states.apart()[stream], states.packing(stream), self.of(stream)
        if self.name == "ffn":
            return module(x)  # type: ignore[no-any-return]
        if self.name == "self":
            return module(x, packing, None, packing)  # type: ignore[no-any-return]
        other = _other(stream)
        return module(x, packing, before[other], states.packing(other))  # type: ignore[no-any-return]

    def _joint_apart(self, states: States) -> None:
        """Joint attention with projections per modality: one softmax over both, weights of each its own."""
        x, batch = states.apart(), states.batch
        modules: dict[Stream, AttentionSublayer] = {s: self.weights[s] for s in self.streams}  # type: ignore[misc]
        entered = {s: modules[s].enter(x[s]) for s in self.streams}
        query = interleave({s: modules[s].attention.project_query(entered[s]) for s in self.streams}, batch)
        keys = {s: modules[s].attention.project_keys(entered[s]) for s in self.streams}
        key = interleave({s: keys[s][0] for s in self.streams}, batch)
        value = interleave({s: keys[s][1] for s in self.streams}, batch)
        attended = modules["text"].attend(query, key, value, batch.joint, batch.joint)
        sizes = [batch.text.packing.tokens, batch.image.packing.tokens]
        parts = dict(zip(self.streams, torch.split(permute(attended, batch.split_rows_J), sizes), strict=True))
        states.set_apart({s: modules[s].finish(x[s], parts[s]) for s in self.streams})


class Block(nn.Module):
    """The sublayers of one block, in order."""

    def __init__(self, config: BlockConfig, layers: dict[Stream, LayerConfig], habits: Habits) -> None:
        super().__init__()
        own = {stream: config.layer(layer) for stream, layer in layers.items()}
        self.config = config
        self.sublayers = nn.ModuleDict({name: Sublayer(name, config, own, habits) for name in config.sublayers})

    @property
    def mixes(self) -> bool:
        """Whether text and image meet here."""
        return bool({"cross", "joint"} & set(self.config.sublayers))

    def forward(self, states: States) -> None:
        before = states.apart() if "cross" in self.config.sublayers else {}
        for sublayer in self.sublayers.values():
            sublayer(states, before)


class Encoder(nn.Module):
    """All blocks of a model.

    Args:
        blocks: the config's `encoder:` lines.
        layers: the default layer of each stream.
    """

    def __init__(self, blocks: tuple[BlockConfig, ...], layers: dict[Stream, LayerConfig], habits: Habits) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, layers, habits) for config in unrolled(blocks))

    def forward(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Final text and image states, packed, and the taps `text.unimodal` and `image.unimodal`."""
        states = States(text_NH, image_MH, batch)
        taps: dict[str, Tensor] = {}
        for block in self.blocks:
            if block.mixes and not taps:
                taps = _unimodal(states)
            block(states)
        final = states.apart()
        return final["text"], final["image"], taps or _unimodal(states)


def unrolled(blocks: tuple[BlockConfig, ...]) -> Iterator[BlockConfig]:
    """Blocks one by one, `repeat` written out."""
    for block in blocks:
        yield from [block] * block.repeat


def _unimodal(states: States) -> dict[str, Tensor]:
    return {f"{stream}.unimodal": state for stream, state in states.apart().items()}


def _other(stream: Stream) -> Stream:
    return "image" if stream == "text" else "text"
