"""A model's pooled vectors alone: its last block works out only the rows that the pooler reads.

The other rows enter attention as keys, and a stream that the pooler does not see is not worked out at all: of a
last block a sixth (two streams) or a fifth (one) is left. The vectors are those of the whole model, up to rounding.

Shape suffixes: B examples, W wanted rows of a stream, N text tokens, M image tokens, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vlp.data.packing import pack
from vlp.models.encoder import Block, Encoder, States, Sublayer, interleave
from vlp.models.model import Network
from vlp.models.sublayers import AttentionSublayer, Looking
from vlp.transfer import moved
from vlp.types import Batch, Packing, Stream

Need = dict[Stream, bool]
"""The streams that a sublayer must change: all their rows (True), or only the wanted ones."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Some rows of a stream."""

    rows_W: Tensor
    """int64, in order, at most one for each example."""
    packing: Packing
    """Which example each belongs to."""


def pooled(model: Network, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> Tensor:
    """The pooled vectors of pairs whose unimodal states are known (see `halves.unimodal`), [B, H]."""
    wanted: dict[Stream, Wanted] = {}
    for stream, rows_W in model.pooler.rows(batch).items():
        lengths = [1] * len(batch) if stream == "text" else [min(n, 1) for n in batch.image.packing.lengths]
        wanted[stream] = Wanted(rows_W, moved(pack(lengths), rows_W.device))
    return model.pooler.pooled(_last_states(model.encoder, text_NH, image_MH, batch, wanted), batch)


def _last_states(
    encoder: Encoder, text_NH: Tensor, image_MH: Tensor, batch: Batch, wanted: Mapping[Stream, Wanted]
) -> dict[Stream, Tensor]:
    """The final states of the wanted rows, [W, H] of each stream."""
    states, last = States(text_NH, image_MH, batch), encoder.last
    if last is None or not narrows(last, batch):
        text_NH, image_MH = encoder.joined(text_NH, image_MH, batch)
        ends: dict[Stream, Tensor] = {"text": text_NH, "image": image_MH}
        return {stream: ends[stream].index_select(0, some.rows_W) for stream, some in wanted.items()}
    encoder.run_before_last(states)
    return _Narrow(states, wanted).through(last)


def narrows(block: Block, batch: Batch) -> bool:
    """Whether a block can work out some rows alone: no bias by distance, no text that is read from left to right."""
    return block.config.relative is None and batch.text.causal_B is None


def needs(sublayers: Sequence[Sublayer], wanted: Mapping[Stream, Wanted]) -> list[Need]:
    """What each sublayer must work out, so that the wanted rows are right in the end.

    A sublayer in which rows look at rows of their block's course needs all of these; `cross` looks at the other stream
    as it was when the block began.
    """
    need: Need = dict.fromkeys(wanted, False)
    found = []
    for sublayer in reversed(sublayers):
        found.append(need)
        if sublayer.name == "joint":
            need = dict.fromkeys(sublayer.streams, True)
        elif sublayer.name == "self":
            need = {stream: every or stream in sublayer.streams for stream, every in need.items()}
    return found[::-1]


class _Narrow:
    """The streams on their way through a block that leaves out what nobody reads."""

    def __init__(self, states: States, wanted: Mapping[Stream, Wanted]) -> None:
        self._states, self._wanted = states, wanted
        self._x: dict[Stream, Tensor] | None = None
        """The streams apart; None while all rows are worked out."""
        self._taken: set[Stream] = set()
        """Those of which only the wanted rows are left."""

    def through(self, block: Block) -> dict[Stream, Tensor]:
        """The wanted rows as the block leaves them."""
        before = block.begin(self._states)
        sublayers: list[Sublayer] = list(block.sublayers.values())  # type: ignore[arg-type]
        for sublayer, need in zip(sublayers, needs(sublayers, self._wanted), strict=True):
            if self._x is None and all(need.get(stream) for stream in sublayer.streams):
                sublayer(self._states, before)
                continue
            made = self._changed(sublayer, {s: every for s, every in need.items() if s in sublayer.streams}, before)
            self._x = {**self._apart(), **made}
            self._taken |= {stream for stream in made if not need[stream]}
        return {stream: self._rows(stream, every=False) for stream in self._wanted}

    def _changed(self, sublayer: Sublayer, need: Need, before: Mapping[Stream, Tensor]) -> dict[Stream, Tensor]:
        """What a sublayer makes of the rows that are needed, by stream."""
        match sublayer.name:
            case "ffn" | "norm":
                return {s: sublayer.of(s)(self._rows(s, every)) for s, every in need.items()}
            case "cross":
                return {s: self._cross(sublayer.of(s), s, every, before) for s, every in need.items()}  # type: ignore[arg-type]
            case "self":
                return {s: self._self(sublayer.of(s), s, every) for s, every in need.items()}  # type: ignore[arg-type]
            case "joint":
                return self._joint(sublayer, need)

    def _cross(self, module: AttentionSublayer, stream: Stream, every: bool, before: Mapping[Stream, Tensor]) -> Tensor:
        other: Stream = "image" if stream == "text" else "text"
        rows, packing = self._rows(stream, every), self._packing(stream, every)
        return module(rows, packing, before[other], self._states.packing(other), Looking())  # type: ignore[no-any-return]

    def _self(self, module: AttentionSublayer, stream: Stream, every: bool) -> Tensor:
        keys = module.attention.project_keys(module.enter(self._apart()[stream]))
        return self._attended(module, stream, every, keys, self._states.packing(stream))

    def _joint(self, sublayer: Sublayer, need: Need) -> dict[Stream, Tensor]:
        modules: dict[Stream, AttentionSublayer] = {s: sublayer.of(s) for s in sublayer.streams}  # type: ignore[misc]
        batch = self._states.batch
        if sublayer.shared and self._x is None:
            joint_JH = self._states.joint()
            keys = modules["text"].attention.project_keys(modules["text"].enter(joint_JH))
        else:
            apart = self._apart()
            own = {s: module.attention.project_keys(module.enter(apart[s])) for s, module in modules.items()}
            keys = (
                interleave({s: key for s, (key, _) in own.items()}, batch),
                interleave({s: value for s, (_, value) in own.items()}, batch),
            )
        return {s: self._attended(modules[s], s, every, keys, batch.joint) for s, every in need.items()}

    def _attended(
        self, module: AttentionSublayer, stream: Stream, every: bool, keys: tuple[Tensor, Tensor], of_keys: Packing
    ) -> Tensor:
        rows = self._rows(stream, every)
        query = module.attention.project_query(module.enter(rows))
        return module.finish(rows, module.attend(query, *keys, self._packing(stream, every), of_keys, Looking()))

    def _apart(self) -> dict[Stream, Tensor]:
        return self._states.apart() if self._x is None else self._x

    def _rows(self, stream: Stream, every: bool) -> Tensor:
        x = self._apart()[stream]
        return x if every or stream in self._taken else x.index_select(0, self._wanted[stream].rows_W)

    def _packing(self, stream: Stream, every: bool) -> Packing:
        return self._states.packing(stream) if every else self._wanted[stream].packing
