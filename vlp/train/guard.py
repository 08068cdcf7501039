"""Watching the losses: what leaps out of its recent range is told, and a run that only skips steps is ended."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from vlp.config import Config
from vlp.distributed import World, share
from vlp.errors import TrainingError
from vlp.train.hooks import Hook
from vlp.train.jsonlines import read_records
from vlp.train.logs import Logs, Spike

if TYPE_CHECKING:
    from vlp.train.engine import StepResult
    from vlp.types import Step

_FEWEST = 32
"""Losses of an objective before its range means anything."""


class GuardConfig(Config):
    """When a run is warned about, and when it is ended."""

    skipped_in_a_row: int = Field(20, ge=1)
    """Steps in a row with a loss or gradient that is not finite, after which the run ends."""
    spike_sigma: float = Field(6.0, gt=0)
    """A loss that lies so many standard deviations above its recent mean is told, with the step's example ids."""
    spike_window: int = Field(128, ge=_FEWEST)
    """Losses of an objective that make its recent mean and deviation."""
    step_minutes: float = Field(30, gt=0)
    """Longest that a step, an evaluation or a checkpoint may take; after it a rank takes the others for dead."""


class Guard(Hook):
    """Keeps the recent losses of each objective: with one objective per step they live on different levels."""

    def __init__(self, config: GuardConfig, logs: Logs, world: World) -> None:
        self._config = config
        self._logs = logs
        self._world = world
        self._recent: dict[str, deque[float]] = {}
        self._skipped = 0

    def remember(self, metrics: Path) -> None:
        """Take in the losses that a run had before it resumed, so that it knows their range; collective.

        Args:
            metrics: the run's `metrics.jsonl`, cut back to the steps done.
        """
        recent: dict[str, deque[float]] = {}
        for record in read_records(metrics) if self._world.is_main else ():
            for name, loss in record.items():
                if name.startswith("loss/") and loss is not None:
                    window = recent.setdefault(name.removeprefix("loss/"), deque(maxlen=self._config.spike_window))
                    window.append(loss)
        self._recent = share(recent, self._world)[0]

    def after(self, step: Step, result: StepResult, record: dict[str, float]) -> None:
        for spike in self.spikes(result.losses):  # the losses are those of all ranks, so all come here together
            own = [name for batch in step.micro_batches for name in batch.ids]
            ids = [name for part in share(own, self._world) for name in part]
            self._logs.spike(step.number + 1, spike, ids)
        self.applied(step.number + 1, result.applied, result.losses, result.grad_norm)

    def spikes(self, losses: Mapping[str, float]) -> list[Spike]:
        """The objectives whose loss leaps out of its window, which takes the loss in afterwards."""
        found = []
        for name, loss in losses.items():
            if not math.isfinite(loss):
                continue
            window = self._recent.setdefault(name, deque(maxlen=self._config.spike_window))
            if len(window) >= _FEWEST:
                mean = math.fsum(window) / len(window)
                sigma = math.sqrt(math.fsum((value - mean) ** 2 for value in window) / (len(window) - 1))
                if loss > mean + self._config.spike_sigma * sigma:
                    found.append(Spike(name, loss, mean, sigma))
            window.append(loss)
        return found

    def applied(self, step: int, applied: bool, losses: Mapping[str, float], grad_norm: float) -> None:
        """Count a step that was applied or skipped.

        Raises:
            TrainingError: too many were skipped in a row; the message says what to look at.
        """
        self._skipped = 0 if applied else self._skipped + 1
        if self._skipped < self._config.skipped_in_a_row:
            return
        bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
        where = (
            f"the loss of {', '.join(bad)} is"
            if bad
            else f"all losses are finite but the gradient norm is {grad_norm},"
        )
        remedy = "its data and targets" if bad else "optimizer.learning_rate, schedule.warmup and optimizer.clip_norm"
        raise TrainingError(
            f"step {step}: {self._skipped} steps in a row were skipped; {where} not finite: look at {remedy}, "
            "then resume from the last checkpoint"
        )
