"""Some steps under torch's profiler, as a trace that chrome://tracing and Perfetto open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from vlp.config import Config
from vlp.train.hooks import Hook

FOLDER = "profile"


class ProfileConfig(Config):
    """Which steps of a run are profiled."""

    first: int = Field(10, ge=1)
    """Number of the first step, counted from 1; the first few of a run are slower than the rest."""
    steps: int = Field(3, ge=1)
    """How many steps."""
    stacks: bool = False
    """Record where in the code each operation was called; makes the trace several times larger."""


class Profiler(Hook):
    """Profiles a window of steps of one rank."""

    def __init__(self, config: ProfileConfig, directory: Path, rank: int) -> None:
        self._config = config
        self._path = directory / FOLDER / f"rank-{rank:05d}.json.gz"
        self._profile: Any = None
        self._end = 0

    def before(self, step: int) -> None:
        if self._profile is not None and step >= self._end:
            self.close()
        elif step == self._config.first:
            self._start(step)

    def _start(self, step: int) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._end = step + self._config.steps
        self._profile = profile(activities=activities, with_stack=self._config.stacks)
        self._profile.start()

    def close(self) -> None:
        """Write the trace if a window is open."""
        if self._profile is None:
            return
        self._profile.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._path))
        self._profile = None
