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
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.models.attention import take
from vlp.models.blocks import BlockConfig, Blocks, Layers, ModalityConfig, SublayerName, after, rows_of
from vlp.models.lastblock import narrowed, narrows
from vlp.models.linear import Linear
from vlp.models.relative import RelativeBias, Side
from vlp.models.streams import Form, States, interleave
from vlp.models.sublayers import AttentionSublayer, FeedForward, Habits, Looking, Norm
from vlp.types import Batch, Packing, Stream


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
        parts = dict(zip(self.streams, torch.split(take(attended, batch.split_rows_J), sizes), strict=True))
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
        checkpointing: keep of a block's activations only what enters it, and run it again in backward; but for a last
            block that works out only what is read.
    """

    def __init__(self, blocks: Blocks, layers: Layers, habits: Habits, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        made: list[Block] = []
        self._numbers: list[int] = []
        for config in rows_of(blocks):
            sets, times = (1, config.repeat) if config.one_set else (config.repeat, 1)
            for _ in range(sets):
                self._numbers += [len(made)] * times
                made.append(Block(config, layers, habits))
            layers = after(config, layers)
        self.blocks = nn.ModuleList(made)

    @property
    def order(self) -> list[Block]:
        """The blocks as they run, of which one may run several times."""
        return [self.blocks[number] for number in self._numbers]  # type: ignore[misc]

    @property
    def apart(self) -> int:
        """How many of them run before text and image meet."""
        order = self.order
        return next((place for place, block in enumerate(order) if block.config.mixes), len(order))

    def forward(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Final text and image states, packed, and the taps `text.unimodal` and `image.unimodal`; of the final states
        those that `batch.read` names, if it does (see `lastblock`)."""
        states = States(text_NH, image_MH, batch)
        self._run(states, self.order[: self.apart])
        taps = {f"{stream}.unimodal": state for stream, state in states.apart().items()}
        return *self._end(states), taps

    def unimodal(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The states where text and image meet: what a text or an image alone decides."""
        states = States(text_NH, image_MH, batch)
        self._run(states, self.order[: self.apart])
        return states.apart()["text"], states.apart()["image"]

    def joined(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Final states from those that `unimodal` gave; of the batch only its packings, its word positions and what
        is read of it are looked at."""
        return self._end(States(text_NH, image_MH, batch))

    def _end(self, states: States) -> tuple[Tensor, Tensor]:
        """Final states from those where text and image meet."""
        met = self.order[self.apart :]
        behind = len(list(takewhile(lambda block: block.config.alone, reversed(met))))
        last = len(met) - behind - 1  # in which tokens look at tokens
        if last >= 0 and narrows(met[last], states.batch):
            self._run(states, met[:last])
            return narrowed(met[last], met[last + 1 :], states)
        self._run(states, met)
        return states.apart()["text"], states.apart()["image"]

    def _run(self, states: States, blocks: Sequence[Block]) -> None:
        for block in blocks:
            if self.checkpointing and torch.is_grad_enabled():
                _recomputed(block, states)
            else:
                block(states)


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
