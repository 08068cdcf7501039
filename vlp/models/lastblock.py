"""The last block where only some rows are read: it works out no others.

A head reads the rows that have a target, and the pooler one of each text. The other rows enter attention as keys, and
that is all there is to do for them: of a last block a fifth or a sixth is left. Losses and gradients are those of the
whole block, up to rounding.

Shape suffixes: W rows of a stream that are read, N text tokens, M image tokens, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlp.models.attention import spread, take
from vlp.models.streams import States, interleave
from vlp.models.sublayers import AttentionSublayer, Looking
from vlp.types import Batch, Packing, Read, Stream

if TYPE_CHECKING:
    from vlp.models.encoder import Block, Sublayer

Need = dict[Stream, bool]
"""Of each stream that a sublayer changes: whether it must change all rows, or only those that are read."""


def narrows(block: Block, batch: Batch) -> bool:
    """Whether a block can work out some rows alone: no bias by distance, no text that is read from left to right."""
    return bool(batch.read) and block.config.relative is None and batch.text.causal_B is None


def narrowed(block: Block, behind: Sequence[Block], states: States) -> tuple[Tensor, Tensor]:
    """Final states, of which a row that is not worked out is NaN, so that what is made of it unsaid is no number.

    Args:
        block: the last in which tokens look at tokens.
        behind: what follows it, in which each token goes its own way.
    """
    return _Narrow(states).through(block, behind)


def _needs(sublayers: Sequence[Sublayer], read: Mapping[Stream, Read]) -> list[Need]:
    """What each sublayer must change, so that what is read is right in the end.

    A sublayer in which rows look at rows as they are by then needs all of these; `cross` looks at the other stream as
    it was when the block began.
    """
    need: Need = {"text": "text" not in read, "image": "image" not in read}
    found = []
    for sublayer in reversed(sublayers):
        found.append({stream: every for stream, every in need.items() if stream in sublayer.streams})
        if sublayer.name == "joint":
            need |= dict.fromkeys(sublayer.streams, True)
        elif sublayer.name == "self":
            need |= {stream: True for stream in sublayer.streams if stream not in read or read[stream].ever}
    return found[::-1]


class _Narrow:
    """The streams on their way through a block that leaves out what nobody reads. Each of its weights is used all the
    same, on no rows where need be: ZeRO counts on a gradient for each."""

    def __init__(self, states: States) -> None:
        self._states, self._read = states, states.batch.read
        self._x: dict[Stream, Tensor] | None = None
        """The streams apart; None while all rows are worked out."""
        self._taken: set[Stream] = set()
        """Those of which only the rows that are read are left."""

    def through(self, block: Block, behind: Sequence[Block]) -> tuple[Tensor, Tensor]:
        """Both streams as the blocks leave them."""
        before = block.begin(self._states)
        sublayers: list[Sublayer] = [sub for each in (block, *behind) for sub in each.sublayers.values()]  # type: ignore[misc]
        for sublayer, need in zip(sublayers, _needs(sublayers, self._read), strict=True):
            if self._x is None and all(need.values()):
                sublayer(self._states, before)
                continue
            self._x = {**self._apart(), **self._changed(sublayer, need, before)}
            self._taken |= {stream for stream, every in need.items() if not every}
        return self._end("text"), self._end("image")

    def _end(self, stream: Stream) -> Tensor:
        x = self._apart()[stream]
        if stream not in self._taken:
            return x
        return spread(x, self._read[stream].rows_W, self._states.packing(stream).tokens, float("nan"))

    def _changed(self, sublayer: Sublayer, need: Need, before: Mapping[Stream, Tensor]) -> dict[Stream, Tensor]:
        """What a sublayer makes of the rows that are needed, by stream."""
        match sublayer.name:
            case "ffn" | "norm":
                return _on(sublayer, lambda module, x: module(x), self._rows(need))
            case "cross":
                return {s: self._cross(sublayer.of(s), s, every, before) for s, every in need.items()}  # type: ignore[arg-type]
            case "self":
                return {s: self._self(sublayer.of(s), s, every) for s, every in need.items()}  # type: ignore[arg-type]
            case "joint":
                return self._joint(sublayer, need)

    def _cross(self, module: AttentionSublayer, stream: Stream, every: bool, before: Mapping[Stream, Tensor]) -> Tensor:
        assert not (every and self._idle(stream))
        other: Stream = "image" if stream == "text" else "text"
        x, packing = self._some(stream, every), self._packing(stream, every)
        context, context_packing = before[other], self._states.packing(other)
        if self._idle(stream):
            context, context_packing = context[:0], packing
        return module(x, packing, context, context_packing, Looking())  # type: ignore[no-any-return]

    def _self(self, module: AttentionSublayer, stream: Stream, every: bool) -> Tensor:
        assert not (every and self._idle(stream))
        x, packing = self._some(stream, every), self._packing(stream, every)
        all_keys = not self._idle(stream)
        keys = module.attention.project_keys(module.enter(self._some(stream, all_keys)))
        query = module.attention.project_query(module.enter(x))
        attended = module.attend(query, *keys, packing, self._packing(stream, all_keys), Looking())
        return module.finish(x, attended)

    def _joint(self, sublayer: Sublayer, need: Need) -> dict[Stream, Tensor]:
        batch, rows = self._states.batch, self._rows(need)
        query = _on(sublayer, lambda module, x: module.attention.project_query(module.enter(x)), rows)
        keys = self._joint_keys(sublayer)
        attended: dict[Stream, Tensor] = {}
        for stream, q in query.items():
            module: AttentionSublayer = sublayer.of(stream)  # type: ignore[assignment]
            packing = self._packing(stream, need[stream])
            looked = attended and self._idle(stream)  # the other stream's rows have, at all keys
            attended[stream] = q if looked else module.attend(q, *keys, packing, batch.joint, Looking())
        return _on(sublayer, AttentionSublayer.finish, rows, attended)

    def _joint_keys(self, sublayer: Sublayer) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows, in the order of examples."""

        def made(module: AttentionSublayer, x: Tensor) -> tuple[Tensor, Tensor]:
            return module.attention.project_keys(module.enter(x))

        if sublayer.shared and self._x is None:
            return made(sublayer.of("text"), self._states.joint())  # type: ignore[arg-type]
        own = {stream: made(sublayer.of(stream), x) for stream, x in self._apart().items()}  # type: ignore[arg-type]
        batch = self._states.batch
        return (
            interleave({stream: key for stream, (key, _) in own.items()}, batch),
            interleave({stream: value for stream, (_, value) in own.items()}, batch),
        )

    def _apart(self) -> dict[Stream, Tensor]:
        return self._states.apart() if self._x is None else self._x

    def _rows(self, need: Need) -> dict[Stream, Tensor]:
        return {stream: self._some(stream, every) for stream, every in need.items()}

    def _some(self, stream: Stream, every: bool) -> Tensor:
        x = self._apart()[stream]
        return x if every or stream in self._taken else take(x, self._read[stream].rows_W)

    def _idle(self, stream: Stream) -> bool:
        """Whether no row of a stream is ever read, so that none looks at any."""
        return stream in self._read and not self._read[stream].ever

    def _packing(self, stream: Stream, every: bool) -> Packing:
        return self._states.packing(stream) if every else self._read[stream].packing


def _on(sublayer: Sublayer, call: Callable[..., Tensor], *given: Mapping[Stream, Tensor]) -> dict[Stream, Tensor]:
    """What a sublayer's weights make of rows of each stream; one set of weights, of all of them at once."""
    streams = list(given[0])
    if not sublayer.shared:
        return {stream: call(sublayer.of(stream), *(rows[stream] for rows in given)) for stream in streams}
    together = call(sublayer.of(streams[0]), *(torch.cat([rows[stream] for stream in streams]) for rows in given))
    sizes = [len(given[0][stream]) for stream in streams]
    return dict(zip(streams, torch.split(together, sizes), strict=True))
