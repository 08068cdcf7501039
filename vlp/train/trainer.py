"""The loop: a step, its numbers, an evaluation and a checkpoint now and then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlp.errors import VlpError
from vlp.train.engine import Engine, StepResult
from vlp.train.evaluation import Evaluation
from vlp.train.hooks import Hook
from vlp.train.logs import Logs
from vlp.train.saver import Saver
from vlp.train.schedule import ScheduleConfig, learning_rate_factor, warmup_steps
from vlp.train.signals import Signals
from vlp.train.speed import Speed
from vlp.train.watchdog import Watchdog

if TYPE_CHECKING:
    from vlp.types import Step


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
    """Trains to the last step, until a signal, or until an evaluation no longer improves.

    Args:
        engine: as made, or set by `Checkpoints.load_newest`.
        loader: the steps that are left, in order; its numbers go on where `first_step` says.
        steps: of the whole run.
        first_step: steps already done (a checkpoint's `step`).
        learning_rate: the peak, which the schedule multiplies.
        saver: writes the checkpoints.
        hooks: called around every step, in order.
        evaluation: on all ranks, during the run and after the last step.
        watchdog: told what the loop is doing.
    """

    def __init__(
        self,
        engine: Engine,
        loader: Iterable[Step],
        *,
        steps: int,
        schedule: ScheduleConfig,
        learning_rate: float,
        saver: Saver,
        logs: Logs,
        hooks: Sequence[Hook] = (),
        first_step: int = 0,
        evaluation: Evaluation | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        warmup_steps(schedule, steps)  # refuse a warm-up that does not fit before any work is done
        self._engine = engine
        self._loader = loader
        self._steps = steps
        self._schedule = schedule
        self._learning_rate = learning_rate
        self._saver = saver
        self._logs = logs
        self._speed = Speed(engine.world)
        self._hooks = [self._speed, *hooks]
        self._done = first_step
        self._evaluation = evaluation
        self._watchdog = watchdog
        self._evaluated: dict[str, float] = {}
        self._evaluated_step: int | None = None
        self._cut_texts = 0
        self._quarantined = 0

    def run(self) -> Outcome:
        """Train. A checkpoint stands at the end, also after SIGTERM or SIGINT.

        Raises:
            VlpError: a step cannot be made, or a hook ends the run; on all ranks, and the steps done are kept.
        """
        stopped = False
        try:
            with Signals() as signals:
                stopped = self._train(signals)
                self._finish(stopped)
        finally:
            for hook in self._hooks:
                hook.close()
        return Outcome(
            step=self._done,
            finished=not stopped,
            skipped_steps=self._engine.skipped_steps,
            cut_texts=self._cut_texts,
            quarantined=self._quarantined,
            evaluation=self._evaluated,
        )

    def _train(self, signals: Signals) -> bool:
        """All steps; returns whether a signal stopped them early."""
        if self._judged_enough():  # the evaluation that a killed run owes, or a run that had ended early
            return False
        for step in self._loader:
            try:
                result = self._step(step, signals)
            except VlpError:
                self._save()
                raise
            if result.save or self._saver.due(self._done):
                signals.save = False
                self._save()
                self._speed.restart()
            if result.stop:
                return self._done < self._steps
            if self._judged_enough():
                return False
        return False

    def _judged_enough(self) -> bool:
        """Evaluate if it is time; returns whether the run should end early."""
        if self._evaluation is None or self._done == self._steps:
            return False
        if self._evaluation.due(self._done):
            self._evaluate(self._evaluation)
            self._speed.restart()
        if self._evaluation.exhausted:
            self._logs.note(f"step {self._done}: no improvement for evaluation.patience evaluations, stopping")
        return self._evaluation.exhausted

    def _step(self, step: Step, signals: Signals) -> StepResult:
        self._report(f"step {step.number + 1}")
        for hook in self._hooks:
            hook.before(step.number + 1)
        rate = self._learning_rate * learning_rate_factor(self._schedule, step.number, self._steps)
        result = self._engine.train_step(step, rate, stop=signals.stop, save=signals.save or self._saver.wishes)
        self._done = step.number + 1
        self._record(step, result, rate)
        return result

    def _record(self, step: Step, result: StepResult, rate: float) -> None:
        self._cut_texts += result.cut_texts
        self._quarantined += result.quarantined
        record: dict[str, float] = {"step": self._done, "loss": result.loss}
        record |= {f"loss/{name}": loss for name, loss in result.losses.items()}
        record |= result.metrics
        record |= {
            "lr": rate,
            "grad_norm": result.grad_norm,
            "skipped_steps": self._engine.skipped_steps,
            "cut_texts": result.cut_texts,
            "quarantined": result.quarantined,
        }
        record |= self._engine.scaler
        if not result.applied:
            self._logs.note(f"step {self._done}: loss or gradient is not finite, the step was skipped")
        try:
            for hook in self._hooks:
                hook.after(step, result, record)
        finally:
            self._logs.step(record)

    def _finish(self, stopped: bool) -> None:
        self._save()
        if stopped:
            self._logs.note(f"stopped by a signal after step {self._done}; resume with --resume")
        elif self._evaluation and self._evaluated_step != self._done:
            self._evaluate(self._evaluation)

    def _evaluate(self, evaluation: Evaluation) -> None:
        self._report(f"the evaluation after step {self._done}")
        with self._engine.averaged():
            self._evaluated = evaluation.run(self._done)
        self._evaluated_step = self._done
        self._logs.evaluation(self._done, self._evaluated)
        self._saver.judged(self._done, evaluation.facts, best=evaluation.improved)

    def _save(self) -> None:
        self._report(f"the checkpoint after step {self._done}")
        self._logs.sync()
        facts: dict[str, Any] = self._evaluation.facts if self._evaluation else {}
        self._saver.save(self._done, facts)

    def _report(self, doing: str) -> None:
        if self._watchdog is not None:
            self._watchdog.report(doing)
