"""The learning rate as a pure function of the step."""

import math
from typing import Annotated, Literal

from pydantic import Field

from vlp.config import Config
from vlp.errors import ConfigError


class ScheduleConfig(Config):
    """How the learning rate rises and falls over a run."""

    kind: Literal["linear", "cosine", "constant"] = "linear"
    """What follows the warm-up: a straight line to `final`, half a cosine to `final`, or no change."""
    warmup: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Steps (a whole number) or share of the run (below 1) over which the rate rises from 0; 0.1 as in UNITER."""
    final: float = Field(0.0, ge=0, le=1)
    """Share of the peak rate that is reached at the end of the run; unused by `constant`."""


def warmup_steps(config: ScheduleConfig, steps: int) -> int:
    """Length of the warm-up in steps.

    Raises:
        ConfigError: the warm-up is longer than the run.
    """
    warmup = config.warmup if isinstance(config.warmup, int) else round(config.warmup * steps)
    if warmup > steps:
        raise ConfigError(f"schedule.warmup: {warmup} steps of warm-up do not fit in a run of {steps}; lower it")
    return warmup


def learning_rate_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Share of the peak learning rate that step `step` (from 0) of `steps` uses.

    The warm-up's first step already moves and the last step still does: no step is spent on a rate of zero.
    """
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = 1 - progress if config.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.final + (1 - config.final) * left
