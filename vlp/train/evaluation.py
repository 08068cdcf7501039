"""Evaluation during training: when, the best so far, and whether it is time to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.config import Config
from vlp.errors import ConfigError, nearest

Judge = Callable[[], dict[str, float]]
"""Gives the metrics of the model as it is; collective."""


class EvaluationConfig(Config):
    """Evaluation on `data.val`, which there is always at the end."""

    every: int | None = Field(None, ge=1)
    """Steps between evaluations; null for none but the last."""
    limit: int | None = Field(None, ge=1)
    """Judge only so many examples (retrieval: images, `task.judged_images` at most); null for all."""
    metric: str | None = None
    """The metric that decides which evaluation is the best, for `checkpoint.keep_best` and `patience`."""
    better: Literal["higher", "lower"] = "higher"
    """Which way the metric improves."""
    patience: int | None = Field(None, ge=1)
    """Evaluations in a row without an improvement after which the run stops; null never stops early."""

    @model_validator(mode="after")
    def _metric_known(self) -> Self:
        if self.patience is not None and (self.metric is None or self.every is None):
            raise ValueError("patience needs evaluation.metric and evaluation.every")
        return self


class Evaluation:
    """Runs evaluations and remembers the best. What it remembers travels in the checkpoints (`facts`).

    Args:
        judge: gives the metrics.
    """

    def __init__(self, config: EvaluationConfig, judge: Judge) -> None:
        self._config = config
        self._judge = judge
        self._best: float | None = None
        self._since = 0
        self._step: int | None = None
        self.best_step: int | None = None
        self.improved = False
        """Whether the last evaluation was the best so far."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "best": self._best,
            "best_step": self.best_step,
            "evaluations_since_best": self._since,
            "evaluated_step": self._step,
            "metric": self._config.metric,
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Go on from the facts of a checkpoint; what was the best by another metric is none by this one."""
        if facts.get("metric") != self._config.metric:
            return
        self._best, self.best_step = facts.get("best"), facts.get("best_step")
        self._since = facts.get("evaluations_since_best", 0)
        self._step = facts.get("evaluated_step")

    def due(self, step: int) -> bool:
        """Whether one should follow step `step`, and has not yet."""
        return self._config.every is not None and step > 0 and step % self._config.every == 0 and step != self._step

    @property
    def exhausted(self) -> bool:
        """Whether the run has waited for an improvement long enough."""
        return self._config.patience is not None and self._since >= self._config.patience

    def run(self, step: int) -> dict[str, float]:
        """Evaluate after `step` steps.

        Raises:
            ConfigError: `evaluation.metric` is none of the metrics.
        """
        metrics = self._judge()
        self.improved = False
        # Judged again at the end of a run that was resumed, say: that is no further try.
        if self._config.metric is not None and step != self._step:
            self._compare(step, metrics)
        self._step = step
        return metrics

    def _compare(self, step: int, metrics: Mapping[str, float]) -> None:
        name = str(self._config.metric)
        if name not in metrics:
            raise ConfigError(
                f"evaluation.metric: '{name}' is none of the metrics ({', '.join(sorted(metrics))})"
                f"{nearest(name, list(metrics))}"
            )
        value, sign = metrics[name], 1 if self._config.better == "higher" else -1
        self.improved = math.isfinite(value) and (self._best is None or sign * value > sign * self._best)
        if self.improved:
            self._best, self.best_step, self._since = value, step, 0
        else:
            self._since += 1
