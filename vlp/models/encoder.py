"""The one encoder: a list of blocks, each a list of sublayers on the text stream, the image stream or both.

    self    a modality attends to itself
    cross   each modality attends to the other, as that was when the block began
    joint   both attend to both, in one softmax over the concatenated keys
    ffn     the feed-forward network
    norm    a bare LayerNorm

`share` names the sublayers that use one set of weights for both modalities. VOLTA (Bugliarello et al. 2021,
arXiv 2011.15124, section 3) shows that single- and dual-stream encoders are choices of this kind.

Shape suffixes: N text tokens, M image tokens, J = N + M; H width of a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.models.attention import permute
from vlp.models.blocks import BlockConfig, Blocks, Layers, ModalityConfig, RelativeConfig, SublayerName, after, rows_of
from vlp.models.causal import may_look
from vlp.models.linear import Linear
from vlp.models.relative import RelativeBias, Side, distances
from vlp.models.sublayers import AttentionSublayer, FeedForward, Habits, Looking, Norm
from vlp.types import Batch, Packing, Stream

Form = Literal["apart", "joint"]


class States:
    """The two streams on their way through the encoder: apart, or one tensor ordered by example.

    A run of shared blocks works on one tensor, so each linear is one matrix product and attention gathers nothing;
    the change of form happens once on each side of such a run.
    """

    def __init__(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> None:
        self.batch = batch
        self._apart: dict[Stream, Tensor] | None = {"text": text_NH, "image": image_MH}
        self._joint_JH: Tensor | None = None
        self._distances: dict[tuple[RelativeConfig, Side], Tensor] = {}
        self._may_look: dict[tuple[Side, Side], Tensor | None] = {}

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

    def held(self) -> tuple[Form, tuple[Tensor, ...]]:
        """The form the streams have now, and their tensors."""
        if self._joint_JH is not None:
            return "joint", (self._joint_JH,)
        return "apart", tuple(self.apart().values())

    def hold(self, form: Form, tensors: Sequence[Tensor]) -> None:
        """Set what `held` gave."""
        if form == "joint":
            self.set_joint(*tensors)
        else:
            self.set_apart({"text": tensors[0], "image": tensors[1]})

    def like(self, form: Form, tensors: Sequence[Tensor]) -> States:
        """Other streams of the same batch; distances of tokens are worked out once for both."""
        other = States(tensors[0], tensors[-1], self.batch)
        other.hold(form, tensors)
        other._distances = self._distances
        return other

    def packing(self, stream: Stream) -> Packing:
        return self.batch.text.packing if stream == "text" else self.batch.image.packing

    def distances(self, config: RelativeConfig, side: Side) -> Tensor:
        """The kinds of distance between tokens, [B, L, L]; the same for all blocks of one config."""
        key = (config, side)
        if key not in self._distances:
            self._distances[key] = distances(config, self.batch, side)
        return self._distances[key]

    def may_look(self, queries: Side, keys: Side) -> Tensor | None:
        """Which queries see which keys; the same for all blocks."""
        if (queries, keys) not in self._may_look:
            self._may_look[queries, keys] = may_look(self.batch, queries, keys)
        return self._may_look[queries, keys]


def interleave(apart: dict[Stream, Tensor], batch: Batch) -> Tensor:
    """Text and image rows, [N, ...] and [M, ...], as joint rows [J, ...]."""
    return permute(torch.cat([apart["text"], apart["image"]]), batch.joint_rows_J)


class Sublayer(nn.Module):
    """One sublayer of a block over its streams: weights per modality, or one set under the name `both`."""

    def __init__(self, name: SublayerName, block: BlockConfig, layers: Layers, habits: Habits) -> None:
        super().__init__()
        self.name = name
        self.streams = block.streams
        self.shared = name in block.share
        owners: dict[str, Stream] = {"both": "text"} if self.shared else {stream: stream for stream in block.streams}
        self.weights = nn.ModuleDict(
            {owner: _made(name, stream, block, layers, habits) for owner, stream in owners.items()}
        )
        biased = block.relative is not None and name in ("self", "joint")
        self.relative = RelativeBias(block.relative, layers[self.streams[0]].heads) if biased else None  # type: ignore[arg-type]

    def of(self, stream: Stream) -> nn.Module:
        return self.weights["both" if self.shared else stream]

    @property
    def on_joint(self) -> bool:
        """Whether this sublayer can work on one tensor that holds both streams."""
        return self.shared and self.name in ("joint", "ffn", "norm")

    def forward(self, states: States, before: dict[Stream, Tensor]) -> None:
        """Change the states in place; `before` holds them as the block found them."""
        if self.on_joint:
            states.set_joint(self._on(self.weights["both"], states.joint(), states.batch.joint, states, None))
        elif self.name == "joint":
            self._joint_apart(states)
        else:
            states.set_apart({**states.apart(), **{s: self._apart(s, states, before) for s in self.streams}})

    def _on(self, module: nn.Module, x: Tensor, packing: Packing, states: States, side: Side) -> Tensor:
        """The sublayer on rows that look at nothing but each other."""
        if self.name in ("ffn", "norm"):
            return module(x)  # type: ignore[no-any-return]
        return module(x, packing, None, packing, self._looking(states, side))  # type: ignore[no-any-return]

    def _apart(self, stream: Stream, states: States, before: dict[Stream, Tensor]) -> Tensor:
        x, packing, module = states.apart()[stream], states.packing(stream), self.of(stream)
        if self.name != "cross":
            return self._on(module, x, packing, states, stream)
        other = _other(stream)
        looking = Looking(may_look=states.may_look(stream, other))
        return module(x, packing, before[other], states.packing(other), looking)  # type: ignore[no-any-return]

    def _joint_apart(self, states: States) -> None:
        """Joint attention with projections per modality: one softmax over both, weights of each its own."""
        x, batch = states.apart(), states.batch
        modules: dict[Stream, AttentionSublayer] = {s: self.weights[s] for s in self.streams}  # type: ignore[misc]
        entered = {s: modules[s].enter(x[s]) for s in self.streams}
        query = interleave({s: modules[s].attention.project_query(entered[s]) for s in self.streams}, batch)
        keys = {s: modules[s].attention.project_keys(entered[s]) for s in self.streams}
        key = interleave({s: keys[s][0] for s in self.streams}, batch)
        value = interleave({s: keys[s][1] for s in self.streams}, batch)
        attended = modules["text"].attend(query, key, value, batch.joint, batch.joint, self._looking(states, None))
        sizes = [batch.text.packing.tokens, batch.image.packing.tokens]
        parts = dict(zip(self.streams, torch.split(permute(attended, batch.split_rows_J), sizes), strict=True))
        states.set_apart({s: modules[s].finish(x[s], parts[s]) for s in self.streams})

    def _looking(self, states: States, side: Side) -> Looking:
        """How tokens of a side look at each other."""
        relative = self.relative
        bias = None if relative is None else relative(states.distances(relative.config, side))
        return Looking(bias, states.may_look(side, side))


def _made(name: SublayerName, stream: Stream, block: BlockConfig, layers: Layers, habits: Habits) -> nn.Module:
    layer = layers[stream]
    if name == "ffn":
        return FeedForward(layer, block, habits)
    if name == "norm":
        return Norm(layer)
    return AttentionSublayer(layer, layers[_other(stream) if name == "cross" else stream], block, habits)


class Modality(nn.Module):
    """A learned vector per modality, added to its tokens."""

    def __init__(self, config: ModalityConfig, width: int) -> None:
        super().__init__()
        self.rows: dict[Stream, int] = {"text": config.text, "image": config.image}
        self.table = nn.Embedding(config.rows, width)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        row = torch.full((len(x),), self.rows[stream], dtype=torch.int64, device=x.device)
        return x + self.table(row)  # type: ignore[no-any-return]


class Block(nn.Module):
    """What one line of `encoder:` says, once."""

    def __init__(self, config: BlockConfig, layers: Layers, habits: Habits) -> None:
        super().__init__()
        behind = after(config, layers)
        own = {stream: config.layer(layer) for stream, layer in behind.items()}
        self.config = config
        self.linear = nn.ModuleDict()
        if config.linear is not None:
            self.linear.update({s: Linear(layers[s].width, config.linear) for s in config.streams})
        self.modality = None if config.add is None else Modality(config.add, behind[config.streams[0]].width)
        self.sublayers = nn.ModuleDict({name: Sublayer(name, config, own, habits) for name in config.sublayers})

    def forward(self, states: States) -> None:
        before = self.begin(states)
        for sublayer in self.sublayers.values():
            sublayer(states, before)

    def begin(self, states: States) -> dict[Stream, Tensor]:
        """What comes before the sublayers; the states as `cross` reads them, if it is among these."""
        if self.config.linear or self.modality is not None:
            states.set_apart({**states.apart(), **{s: self._bridge(s, states) for s in self.config.streams}})
        return states.apart() if "cross" in self.config.sublayers else {}

    def _bridge(self, stream: Stream, states: States) -> Tensor:
        x = states.apart()[stream]
        if stream in self.linear:
            x = self.linear[stream](x)
        return x if self.modality is None else self.modality(x, stream)


class Encoder(nn.Module):
    """All blocks of a model.

    Args:
        blocks: the config's `encoder:` lines.
        layers: the layer of each stream as its embedding leaves it.
        checkpointing: keep of a block's activations only what enters it, and run it again in backward.
    """

    def __init__(self, blocks: Blocks, layers: Layers, habits: Habits, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        made: list[Block] = []
        self.runs: list[tuple[int, int]] = []
        """Blocks in running order, as their number and how many times each runs in a row."""
        for config in rows_of(blocks):
            sets, times = (1, config.repeat) if config.one_set else (config.repeat, 1)
            for _ in range(sets):
                self.runs.append((len(made), times))
                made.append(Block(config, layers, habits))
            layers = after(config, layers)
        self.blocks = nn.ModuleList(made)

    def forward(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Final text and image states, packed, and the taps `text.unimodal` and `image.unimodal`."""
        states = States(text_NH, image_MH, batch)
        self._run(states, self.runs[: self.apart])
        taps = {f"{stream}.unimodal": state for stream, state in states.apart().items()}
        self._run(states, self.runs[self.apart :])
        final = states.apart()
        return final["text"], final["image"], taps

    @property
    def apart(self) -> int:
        """How many of `runs` there are before text and image meet."""
        met = (place for place, (number, _) in enumerate(self.runs) if self.blocks[number].config.mixes)  # type: ignore[union-attr]
        return next(met, len(self.runs))

    def unimodal(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The states where text and image meet: what a text or an image alone decides."""
        states = States(text_NH, image_MH, batch)
        self._run(states, self.runs[: self.apart])
        return states.apart()["text"], states.apart()["image"]

    def joined(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Final states from those that `unimodal` gave; of the batch only its packings and word positions are read."""
        states = States(text_NH, image_MH, batch)
        self._run(states, self.runs[self.apart :])
        return states.apart()["text"], states.apart()["image"]

    @property
    def last(self) -> Block | None:
        """The block that runs last, if that is where or behind where text and image meet."""
        return None if self.apart == len(self.runs) else self.blocks[self.runs[-1][0]]  # type: ignore[return-value]

    def run_before_last(self, states: States) -> None:
        """From where text and image meet to the last block, which is left out."""
        *runs, (number, times) = self.runs[self.apart :]
        self._run(states, [*runs, (number, times - 1)])

    def _run(self, states: States, runs: list[tuple[int, int]]) -> None:
        for number, times in runs:
            for _ in range(times):
                if self.checkpointing and torch.is_grad_enabled():
                    _recomputed(self.blocks[number], states)
                else:
                    self.blocks[number](states)


def _recomputed(block: nn.Module, states: States) -> None:
    """A block whose activations are worked out again in backward, with the same dropout (Chen et al. 2016, arXiv
    1604.06174)."""
    form, entering = states.held()
    left: Form = form

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        nonlocal left
        inner = states.like(form, tensors)
        block(inner)
        left, leaving = inner.held()
        return leaving

    leaving = checkpoint(run, *entering, use_reentrant=False)
    states.hold(left, leaving)


def _other(stream: Stream) -> Stream:
    return "image" if stream == "text" else "text"
