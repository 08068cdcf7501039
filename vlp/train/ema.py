"""Running means of the weights, kept by each rank for the pieces of parameters that it holds.

One that evaluation and export use (`ema`), and one that a momentum model is (`vlp.train.survey`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field

from vlp.config import Config
from vlp.train.states import States

if TYPE_CHECKING:
    from torch import Tensor

EMA, MOMENTUM = "ema", "momentum"
"""Names of the means among the values of a piece, in checkpoints."""
KINDS = (EMA, MOMENTUM)


class EmaConfig(Config):
    """An exponential moving average of the weights (Polyak & Juditsky 1992), which evaluation and `model/` then use."""

    decay: float = Field(0.9999, gt=0, lt=1)
    """Share of the mean that stays at each step; it averages over about 1 / (1 - decay) steps."""
    warmup: bool = True
    """Take min(decay, (1 + step) / (10 + step)) instead, so that a short run does not average in its random start."""


class Mean:
    """A mean of the fp32 weights after every applied step, at every ZeRO stage: memory is one more shard of weights.

    Args:
        kind: its name among the values of a piece.
        states: of the engine; the mean starts at the weights it holds now.
    """

    def __init__(self, kind: str, config: EmaConfig, states: States) -> None:
        self.kind = kind
        self._config = config
        self._states = states
        self.values: dict[str, Tensor] = {
            piece.name: piece.values["weight"].detach().float().clone() for piece in states.pieces()
        }
        """By parameter name, this rank's piece of it, flat."""

    def update(self, step: int) -> None:
        """Take in the weights after `step` applied steps."""
        decay = min(self._config.decay, (1 + step) / (10 + step)) if self._config.warmup else self._config.decay
        for piece in self._states.pieces():
            self.values[piece.name].lerp_(piece.values["weight"].detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model's weights are the mean; collective. Nothing may be trained or saved inside."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for piece in self._states.pieces():
            weight, mean = piece.values["weight"].data, self.values[piece.name]
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)
        self._states.refresh_working_weights()
