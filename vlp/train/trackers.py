"""Where a run's numbers go besides its own files: TensorBoard, Weights & Biases. One protocol; rank 0 has them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from vlp.config import Config
from vlp.errors import ConfigError

TENSORBOARD_FOLDER = "tensorboard"
WANDB_FILE = "wandb-run"
"""Holds the id of the run at Weights & Biases, so that a resumed run goes on with it."""


class Tracker(Protocol):
    """Shows the numbers of a run."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step, or of an evaluation after it."""

    def close(self) -> None:
        """The run has ended; nothing is lost that was logged."""


class WandbConfig(Config):
    """Weights & Biases. Needs its package (`pip install vlp[wandb]`) and, unless offline, a login (`wandb login`)."""

    project: str = "vlp"
    """The project that the run belongs to."""
    entity: str | None = None
    """The user or team; null for one's own default."""
    name: str | None = Field(None, min_length=1)
    """What the run is called; null for the name of `run.dir`."""
    mode: Literal["online", "offline"] = "online"
    """Offline keeps everything in `run.dir`/wandb, for `wandb sync` later: for nodes without a way to the internet."""


class TensorBoard:
    """Events in the run's `tensorboard/`; those of steps that a resumed run does again are taken back."""

    def __init__(self, directory: Path, resume_from: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = directory / TENSORBOARD_FOLDER
        purge = resume_from + 1 if folder.exists() else None
        self._writer: Any = SummaryWriter(str(folder), purge_step=purge)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run at Weights & Biases. Steps that a resumed run does again are there already, and are left as they are.

    Args:
        directory: of the run.
        facts: the run's config, shown beside its numbers.
    Raises:
        ConfigError: the package is missing, or it refuses the run (no login, no such entity).
    """

    def __init__(self, config: WandbConfig, directory: Path, facts: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            said = "log.wandb: the package wandb is missing: pip install wandb, or take log.wandb back"
            raise ConfigError(said) from None
        known = directory / WANDB_FILE
        number = known.read_text(encoding="utf-8").strip() if known.exists() else wandb.util.generate_id()
        try:
            self._run: Any = wandb.init(
                project=config.project,
                entity=config.entity,
                name=config.name or directory.resolve().name,
                mode=config.mode,
                dir=str(directory),
                id=number,
                resume="allow",
                config=dict(facts),
            )
        except wandb.errors.Error as error:
            raise ConfigError(f"log.wandb: {error}; log in with `wandb login`, or set log.wandb.mode=offline") from None
        known.write_text(number + "\n", encoding="utf-8")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({name: value for name, value in numbers.items() if math.isfinite(value)}, step=step)

    def close(self) -> None:
        self._run.finish()


@contextmanager
def _closing(trackers: list[Tracker]) -> Iterator[None]:
    """Closes what was made if a later one cannot be."""
    try:
        yield
    except BaseException:
        for tracker in trackers:
            tracker.close()
        raise


def make_trackers(
    directory: Path, *, tensorboard: bool, wandb: WandbConfig | None, resume_from: int, facts: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers that a config asks for."""
    made: list[Tracker] = []
    with _closing(made):
        if tensorboard:
            made.append(TensorBoard(directory, resume_from))
        if wandb is not None:
            made.append(Wandb(wandb, directory, facts))
    return made
