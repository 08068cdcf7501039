"""When the loop writes a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from vlp.train.checkpoint import Checkpoints
from vlp.train.engine import Engine


class Saver:
    """Writes checkpoints by steps, by time and on request, none twice.

    Args:
        step: of the checkpoint that the run starts from, 0 for none.
    """

    def __init__(self, checkpoints: Checkpoints, engine: Engine, step: int) -> None:
        self._checkpoints = checkpoints
        self._engine = engine
        self._saved = step
        self._time = time.monotonic()

    @property
    def wishes(self) -> bool:
        """Whether this rank's clock says that it is time; ranks must agree before they save."""
        minutes = self._checkpoints.config.minutes
        return minutes is not None and time.monotonic() - self._time >= 60 * minutes

    def due(self, step: int) -> bool:
        """Whether the number of steps says that it is time."""
        every = self._checkpoints.config.every
        return every is not None and step % every == 0

    def save(self, step: int, facts: Mapping[str, Any]) -> None:
        """Write a checkpoint after `step` steps if there is none yet; collective."""
        if step != self._saved:
            self._checkpoints.save(self._engine, step, facts)
            self._saved = step
        self._time = time.monotonic()

    def judged(self, step: int, facts: Mapping[str, Any], *, best: bool) -> None:
        """After an evaluation: its checkpoint, if there is one, learns of it; the best gets one. Collective."""
        if step == self._saved:
            self._checkpoints.amend(step, facts)
        elif best and self._checkpoints.config.keep_best:
            self.save(step, facts)
