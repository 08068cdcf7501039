"""The learning rate as a pure function of the step."""

import math
from typing import Annotated, Literal

from pydantic import Field

from vlp.config import Config
from vlp.errors import ConfigError


class ScheduleConfig(Config):
    """How the learning rate rises and falls over a run."""

    kind: Literal["linear", "cosine", "polynomial", "stable", "constant"] = "linear"
    """What follows the warm-up: a straight line to `final`, half a cosine to it, a power of the line, the full rate
    and a line to `final` over the last part (warm-up, stable, decay; Hu et al. 2024), or no change."""
    warmup: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Steps (a whole number) or share of the run (below 1) over which the rate rises from 0; 0.1 is usual."""
    final: float = Field(0.0, ge=0, le=1)
    """Share of the peak rate that is reached at the end of the run; unused by `constant`."""
    power: float = Field(2.0, gt=0)
    """Exponent of `polynomial`; 1 is `linear`."""
    decay: float = Field(0.1, gt=0, le=1)
    """Share of the run, at its end, over which `stable` falls."""


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
    fall = warmup if config.kind != "stable" else max(warmup, steps - round(config.decay * steps))
    left = min(1.0, max(0.0, (steps - step) / max(1, steps - fall)))
    match config.kind:
        case "constant":
            return 1.0
        case "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        case "polynomial":
            left = left**config.power
        case "linear" | "stable":
            pass
    return config.final + (1 - config.final) * left
