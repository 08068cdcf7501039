"""The two streams on their way through the encoder.

Shape suffixes: N text tokens, M image tokens, J = N + M; H width of a stream; B examples; L longest of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vlp.models.attention import take
from vlp.models.blocks import RelativeConfig
from vlp.models.causal import may_look
from vlp.models.relative import Side, distances
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
            both = take(self._joint_JH, self.batch.split_rows_J)
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
    return take(torch.cat([apart["text"], apart["image"]]), batch.joint_rows_J)
