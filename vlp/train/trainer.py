"""The loop: a step, its numbers, an evaluation and a checkpoint now and then."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from vlp.distributed import share
from vlp.errors import DataError
from vlp.train.checkpoint import Checkpoints
from vlp.train.engine import Engine, StepResult
from vlp.train.guard import QuarantineGuard
from vlp.train.logs import Logs
from vlp.train.schedule import ScheduleConfig, learning_rate_factor, warmup_steps

if TYPE_CHECKING:
    from vlp.types import Step

Evaluate = Callable[[], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    step: int
    """Steps done."""
    finished: bool
    """False if a signal stopped it before its last step."""
    skipped_steps: int
    cut_texts: int
    """Texts cut at the model's limit, over this process's steps and all ranks."""
    quarantined: int
    evaluation: dict[str, float]
    """The last evaluation, empty if there was none."""


class Trainer:
    """Trains to the last step, or until a signal.

    Args:
        engine: as made, or set by `Checkpoints.load_newest`.
        loader: the steps that are left, in order; its numbers go on where `first_step` says.
        steps: of the whole run.
        first_step: steps already done (a checkpoint's `step`).
        learning_rate: the peak, which the schedule multiplies.
        evaluate: gives metrics; called on all ranks, every `evaluate_every` steps and after the last.
        guard: stops the run where too many examples are bad.
    """

    def __init__(
        self,
        engine: Engine,
        loader: Iterable[Step],
        *,
        steps: int,
        schedule: ScheduleConfig,
        learning_rate: float,
        checkpoints: Checkpoints,
        logs: Logs,
        first_step: int = 0,
        evaluate: Evaluate | None = None,
        evaluate_every: int | None = None,
        guard: QuarantineGuard,
    ) -> None:
        warmup_steps(schedule, steps)  # refuse a warm-up that does not fit before any work is done
        self._engine = engine
        self._loader = loader
        self._steps = steps
        self._schedule = schedule
        self._learning_rate = learning_rate
        self._checkpoints = checkpoints
        self._logs = logs
        self._done = self._saved = first_step
        self._evaluate = evaluate
        self._evaluate_every = evaluate_every
        self._guard = guard
        self._evaluated: dict[str, float] = {}
        self._cut_texts = 0
        self._quarantined = 0

    def run(self) -> Outcome:
        """Train. A checkpoint stands at the end, also after SIGTERM or SIGINT.

        Raises:
            DataError: a step cannot be made, or too many examples are bad; on all ranks, and the steps done are kept.
        """
        stopped = False
        with StopSignal() as signalled:
            clock = _Clock()
            for step in self._loader:
                clock.loaded()
                try:
                    result = self._step(step, clock, stop=signalled.received)
                except DataError:
                    self._save()
                    raise
                if self._due(self._checkpoints.config.every):
                    self._save()
                if result.stop:
                    stopped = self._done < self._steps
                    break
                if self._evaluate_every and self._done < self._steps and self._due(self._evaluate_every):
                    self._run_evaluation()
                clock.restart()
            self._save()
            if stopped:
                self._logs.note(f"stopped by a signal after step {self._done}; resume with --resume")
            elif self._evaluate:
                self._run_evaluation()
        return Outcome(
            step=self._done,
            finished=not stopped,
            skipped_steps=self._engine.skipped_steps,
            cut_texts=self._cut_texts,
            quarantined=self._quarantined,
            evaluation=self._evaluated,
        )

    def _step(self, step: Step, clock: _Clock, *, stop: bool) -> StepResult:
        rate = self._learning_rate * learning_rate_factor(self._schedule, step.number, self._steps)
        result = self._engine.train_step(step, rate, stop=stop)
        self._done = step.number + 1
        self._record(step, result, rate, clock)
        self._guard.check()
        return result

    def _save(self) -> None:
        """A checkpoint of the steps done, if there is none."""
        if self._saved != self._done:
            self._checkpoints.save(self._engine, self._done)
            self._saved = self._done

    def _due(self, every: int | None) -> bool:
        return every is not None and self._done % every == 0

    def _run_evaluation(self) -> None:
        assert self._evaluate is not None
        self._evaluated = self._evaluate()
        self._logs.evaluation(self._done, self._evaluated)

    def _record(self, step: Step, result: StepResult, rate: float, clock: _Clock) -> None:
        seconds = clock.stepped()
        self._cut_texts += result.cut_texts
        self._quarantined += result.quarantined
        record: dict[str, float] = {"step": self._done, "loss": result.loss}
        record |= {f"loss/{name}": loss for name, loss in result.losses.items()}
        record |= result.metrics
        record |= {
            "lr": rate,
            "grad_norm": result.grad_norm,
            "examples_per_second": result.examples / seconds,
            "tokens_per_second": result.tokens / seconds,
            "data_wait": clock.wait,
            "step_seconds": seconds,
            "micro_batches": result.micro_batches,
            "skipped_steps": self._engine.skipped_steps,
            "cut_texts": result.cut_texts,
            "quarantined": result.quarantined,
        }
        self._logs.step(record)
        if not result.applied:
            self._logs.note(f"step {self._done}: loss or gradient is not finite, the step was skipped")
        records: list[dict[str, str]] = []
        if result.quarantined:  # all ranks know the total, so all come here together
            records = [record for part in share(step.quarantined, self._engine.world) for record in part]
            self._logs.quarantine(self._done, records)
        self._guard.add(result.examples, records)


class StopSignal:
    """Within it SIGTERM and SIGINT only set `received`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


class _Clock:
    """Wall time of a step, from the end of the step before, and the seconds of it spent waiting for data."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.wait = 0.0
        """Seconds that the step waited for its data."""

    def restart(self) -> None:
        self._start = time.perf_counter()

    def loaded(self) -> None:
        self.wait = time.perf_counter() - self._start

    def stepped(self) -> float:
        return max(time.perf_counter() - self._start, 1e-9)
