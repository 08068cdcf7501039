"""A training run from its config to its model: what `vlp pretrain` and `vlp finetune` do on each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlp.assemble import Assembled, assemble, make_loader, make_module, model_summary
from vlp.distributed import Board, World, barrier, world
from vlp.errors import ConfigError
from vlp.export import CONFIG_FILE, MODEL_DIRECTORY, model_weights
from vlp.models.flops import Arithmetic
from vlp.models.heights import heights
from vlp.run import Command, load_run
from vlp.rundirectory import changeable, describe, identity, saved_task, training_record
from vlp.tasks.judge import Judge
from vlp.tasks.saved import save_trained
from vlp.train.checkpoint import Checkpoints
from vlp.train.checkpointfiles import CHECKPOINTS
from vlp.train.engine import Engine
from vlp.train.evaluation import Evaluation
from vlp.train.guard import Guard
from vlp.train.hooks import Hook
from vlp.train.logs import METRICS_FILE, Logs
from vlp.train.profiler import Profiler
from vlp.train.quarantine import Quarantine
from vlp.train.saver import Saver
from vlp.train.speed import Utilisation, measured_peak
from vlp.train.trainer import Outcome, Trainer
from vlp.train.watchdog import Watchdog
from vlp.train.zero import read_zero, zero_file


def train(config: str, overrides: Sequence[str], command: Command, *, resume: bool) -> Outcome:
    """Run, or continue, the training that a config describes. Called by every rank.

    Args:
        config: a file or the name of a shipped config.
        resume: continue from the newest checkpoint in `run.dir`; without it a used `run.dir` is refused.
    """
    run = load_run(config, overrides, command)
    directory = Path(run.run.dir)
    _check_directory(directory, resume)
    with world(timeout_minutes=2 * run.guard.step_minutes) as ranks:  # the watchdog speaks first, and names ranks
        assembled = assemble(run)
        barrier(ranks)  # rank 0 must not write before the others have looked
        with Watchdog(run.guard.step_minutes, ranks.rank, Board(ranks)) as watchdog:
            return _train(assembled, directory, ranks, resume, watchdog)


def _check_directory(directory: Path, resume: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run.dir: {directory} is a file; give a directory")
    if (directory / CONFIG_FILE).exists() and not resume:
        raise ConfigError(
            f"run.dir: {directory} holds a run already; add --resume to continue it, or take another run.dir"
        )


def _train(assembled: Assembled, directory: Path, ranks: World, resume: bool, watchdog: Watchdog) -> Outcome:
    run = assembled.config
    notes: list[str] = []
    module = make_module(assembled, notes.append)
    engine = Engine(
        module,
        weights=assembled.task.weights,
        optimizer=run.optimizer,
        precision=run.precision,
        zero=read_zero(zero_file(run.deepspeed)),
        world=ranks,
        seed=run.run.seed,
        heights={f"model.{name}": height for name, height in heights(module.model).items()},
        ema=run.ema,
        penalty=run.penalty,
        log_file=directory / "deepspeed.log",
    )
    checkpoints = Checkpoints(
        directory / CHECKPOINTS, run.checkpoint, ranks, identity(assembled), changeable(assembled)
    )
    state = checkpoints.load_newest(engine, lambda said: print(said, flush=True))
    done = state.step if state else 0
    loader = make_loader(assembled, range(done, assembled.steps), ranks)
    if ranks.is_main:
        describe(assembled, directory, ranks, done)
    evaluation = _evaluation(assembled, engine)
    with Logs(directory, run.log, ranks, steps=assembled.steps, resume_from=done, facts=run.plain()) as logs:
        logs.note(_headline(assembled, ranks, done))
        for note in notes if not done else ():
            logs.note(note)
        if resume and state is None:
            logs.note(f"{directory} holds no checkpoint to resume from; this is the first step")
        if evaluation is not None and state is not None:
            evaluation.restore(state.facts)
        trainer = Trainer(
            engine,
            loader,
            steps=assembled.steps,
            schedule=run.schedule,
            learning_rate=run.optimizer.learning_rate,
            saver=Saver(checkpoints, engine, done),
            logs=logs,
            hooks=_hooks(assembled, directory, logs, ranks),
            first_step=done,
            evaluation=evaluation,
            watchdog=watchdog,
        )
        outcome = trainer.run()
        if outcome.finished:
            watchdog.report("the export of the model")
            export(assembled, engine, directory / MODEL_DIRECTORY, outcome.evaluation)
            logs.note(f"model: {directory / MODEL_DIRECTORY}")
        if outcome.cut_texts or outcome.quarantined:
            logs.note(f"texts cut at the model's limit: {outcome.cut_texts}, examples replaced: {outcome.quarantined}")
    engine.close()
    return outcome


def _hooks(assembled: Assembled, directory: Path, logs: Logs, ranks: World) -> list[Hook]:
    run = assembled.config
    guard = Guard(run.guard, logs, ranks)
    guard.remember(directory / METRICS_FILE)
    hooks: list[Hook] = [Quarantine(run.data.quarantine_limit, logs, ranks), guard]
    if run.log.peak_tflops is not None:
        given = run.log.peak_tflops
        peak = measured_peak(ranks.device, run.precision) if given == "measure" else given * 1e12
        measured = ", as measured" if given == "measure" else ""
        logs.note(f"mfu is a share of {peak / 1e12:.3g} TFLOPS per rank{measured}")
        hooks.append(Utilisation(Arithmetic(run.model), peak, ranks))
    if run.profile is not None:
        hooks.append(Profiler(run.profile, directory, ranks.rank))
    return hooks


def _evaluation(assembled: Assembled, engine: Engine) -> Evaluation | None:
    val, run = assembled.val, assembled.config
    if val is None:
        return None
    judge = Judge(engine, val, run.batch.micro_tokens, run.run.seed, run.evaluation.limit)
    return Evaluation(run.evaluation, lambda: judge.metrics(assembled.task))


def export(assembled: Assembled, engine: Engine, directory: Path, metrics: Mapping[str, float]) -> None:
    """Write the model directory; collective, rank 0 writes."""
    with engine.averaged():
        weights = engine.full_weights()
    if engine.world.is_main:
        run = assembled.config
        tensors = model_weights(weights, run.model, run.transfer)
        history, name = training_record(assembled, metrics), Path(run.run.dir).resolve().name
        save_trained(directory, run.model, tensors, saved_task(assembled), assembled.text, history, name)


def _headline(assembled: Assembled, ranks: World, done: int) -> str:
    run = assembled.config
    start = f", from step {done}" if done else ""
    return (
        f"{run.task.name}: {model_summary(run.model)}; {assembled.order.examples:,} examples, "
        f"{assembled.steps:,} steps of {run.batch.size}; "
        f"{ranks.size} rank{'s' if ranks.size > 1 else ''}, {run.precision}{start}"
    )
