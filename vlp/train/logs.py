"""What a run says: a progress bar or plain lines, `metrics.jsonl`, trackers. Only rank 0 writes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vlp.config import Config
from vlp.distributed import World
from vlp.train.jsonlines import JsonLines
from vlp.train.trackers import Tracker, WandbConfig, make_trackers

METRICS_FILE = "metrics.jsonl"
QUARANTINE_FILE = "quarantine.jsonl"
SPIKES_FILE = "spikes.jsonl"


class LogConfig(Config):
    """What is shown and kept while a run trains. `metrics.jsonl` always holds every step."""

    every: int = Field(10, ge=1)
    """Steps between lines where the output is not a terminal."""
    tensorboard: bool = True
    """Write TensorBoard events to the run's `tensorboard/`."""
    wandb: WandbConfig | None = None
    """Send the numbers to Weights & Biases too; null does not."""
    peak_tflops: Annotated[float, Field(gt=0)] | Literal["measure"] | None = None
    """What a rank's device can do at most, in 10^12 operations per second of the run's precision: `mfu` is the share of
    it that the model's own arithmetic reaches. `measure` times a large matrix product at the start; null leaves `mfu`
    out."""


@dataclass(frozen=True, slots=True)
class Spike:
    """A loss out of its recent range."""

    objective: str
    loss: float
    mean: float
    sigma: float
    """Standard deviation of the recent losses."""


class Logs:
    """Writes the metrics of a run; does nothing on other ranks than 0. Use as a context manager.

    Args:
        directory: of the run.
        steps: of the whole run, for the progress.
        resume_from: steps that the checkpoint holds; later lines of an earlier try are removed from the files.
        facts: the run's config, for trackers that show it.
        terminal: show a bar (None: if the output is a terminal).
    """

    def __init__(
        self,
        directory: Path,
        config: LogConfig,
        world: World,
        *,
        steps: int,
        resume_from: int = 0,
        facts: Mapping[str, Any] | None = None,
        terminal: bool | None = None,
    ) -> None:
        self._config = config
        self._steps = steps
        self._metrics: JsonLines | None = None
        self._quarantine: JsonLines | None = None
        self._spikes: JsonLines | None = None
        self._known: set[tuple[str, ...]] = set()
        self._judged: set[int] = set()
        self._trackers: list[Tracker] = []
        self._bar: Any = None
        if not world.is_main:
            return
        directory.mkdir(parents=True, exist_ok=True)
        self._metrics = JsonLines(directory / METRICS_FILE, resume_from, self._saw)
        self._quarantine = JsonLines(
            directory / QUARANTINE_FILE, resume_from, lambda record: self._known.add(_place_of(record))
        )
        self._spikes = JsonLines(directory / SPIKES_FILE, resume_from)
        self._trackers = make_trackers(
            directory, tensorboard=config.tensorboard, wandb=config.wandb, resume_from=resume_from, facts=facts or {}
        )
        if sys.stdout.isatty() if terminal is None else terminal:
            self._bar = _Bar(steps, resume_from)

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _saw(self, record: Mapping[str, Any]) -> None:
        if any(name.startswith("eval/") for name in record):
            self._judged.add(int(record["step"]))

    def step(self, record: Mapping[str, float]) -> None:
        """One step: its `step` (steps done) and its numbers."""
        if self._metrics is None:
            return
        self._write(record)
        if self._bar:
            self._bar.step(record)
        elif int(record["step"]) % self._config.every == 0 or record["step"] in (1, self._steps):
            print(_line(record, self._steps), flush=True)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of an evaluation after `step` steps; names get the prefix `eval/`. Each stands there once."""
        if self._metrics is None or step in self._judged:
            return
        record = {"step": step} | {f"eval/{name}": value for name, value in metrics.items()}
        self._write(record)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.note(f"step {step}: evaluation: {shown}")

    def quarantine(self, step: int, records: Sequence[Mapping[str, str]]) -> None:
        """Examples that were replaced in a step. Each member of a sample is recorded at its first time alone."""
        if self._quarantine is None:
            return
        for record in records:
            if _place_of(record) not in self._known:
                self._known.add(_place_of(record))
                self._quarantine.append({"step": step, **record})

    def spike(self, step: int, spike: Spike, examples: Sequence[str]) -> None:
        """A loss that leapt, with the ids of the step's examples."""
        if self._spikes is None:
            return
        self._spikes.append({"step": step, **asdict(spike), "examples": list(examples)})
        self.note(
            f"step {step}: loss of {spike.objective} leapt to {spike.loss:.4g} (recent mean {spike.mean:.4g}, "
            f"deviation {spike.sigma:.2g}); its examples are in {SPIKES_FILE}"
        )

    def note(self, text: str) -> None:
        """A line for the person watching."""
        if self._metrics is None:
            return
        if self._bar:
            self._bar.note(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        for part in (self._bar, *self._trackers, self._metrics, self._quarantine, self._spikes):
            if part is not None:
                part.close()
        self._metrics = self._quarantine = self._spikes = self._bar = None
        self._trackers = []

    def sync(self) -> None:
        """Make what is written survive a power cut; a checkpoint that follows then has all lines before it."""
        for file in (self._metrics, self._quarantine, self._spikes):
            if file is not None:
                file.sync()

    def _write(self, record: Mapping[str, float]) -> None:
        assert self._metrics is not None
        self._metrics.append(record)
        numbers = {name: value for name, value in record.items() if name != "step"}
        for tracker in self._trackers:
            tracker.log(int(record["step"]), numbers)


def _place_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(record.get(name, "")) for name in ("data", "shard", "key", "member"))


def _line(record: Mapping[str, float], steps: int) -> str:
    parts = [f"step {int(record['step'])}/{steps}", f"loss {record['loss']:.4f}"]
    parts += [f"{n.removeprefix('loss/')} {v:.4f}" for n, v in record.items() if n.startswith("loss/")]
    parts += [
        f"lr {record['lr']:.2e}",
        f"norm {record['grad_norm']:.3g}",
        f"{record['tokens_per_second']:.0f} tokens/s",
    ]
    return "  ".join(parts)


class _Bar:
    """A rich progress bar with the last step's numbers."""

    def __init__(self, steps: int, done: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        whole = Column(no_wrap=True, min_width=2 * len(str(steps)) + 1)
        cut = Column(no_wrap=True, overflow="ellipsis")
        self._progress = Progress(
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=whole),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[last]}", table_column=cut, markup=False),
        )
        self._steps = steps
        self._task = self._progress.add_task("training", total=steps, completed=done, last="")
        self._progress.start()

    def step(self, record: Mapping[str, float]) -> None:
        text = _line(record, self._steps).partition("  ")[2]
        self._progress.update(self._task, completed=int(record["step"]), last=text)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()
