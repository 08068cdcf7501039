"""A training run from its config to its model: what `vlp pretrain` and `vlp finetune` do on each rank."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlp import resources
from vlp.assemble import Assembled, assemble, make_module, model_summary
from vlp.config import write_yaml
from vlp.data.loader import StepLoader
from vlp.distributed import World, barrier, world
from vlp.errors import ConfigError
from vlp.models.heights import heights
from vlp.run import Command, RunConfig, load_run
from vlp.tasks.judge import Judge
from vlp.tasks.saved import SavedTask, save_trained
from vlp.train.checkpoint import Checkpoints
from vlp.train.engine import Engine
from vlp.train.guard import QuarantineGuard
from vlp.train.logs import Logs
from vlp.train.trainer import Evaluate, Outcome, Trainer
from vlp.train.zero import read_zero

CONFIG_FILE = "config.yaml"
FACTS_FILE = "run.json"
MODEL_DIRECTORY = "model"


def train(config: str, overrides: Sequence[str], command: Command, *, resume: bool) -> Outcome:
    """Run, or continue, the training that a config describes. Called by every rank.

    Args:
        config: a file or the name of a shipped config.
        resume: continue from the newest checkpoint in `run.dir`; without it a used `run.dir` is refused.
    """
    run = load_run(config, overrides, command)
    directory = Path(run.run.dir)
    _check_directory(directory, resume)
    with world() as ranks:
        assembled = assemble(run)
        barrier(ranks)  # rank 0 must not write before the others have looked
        return _train(assembled, directory, ranks, resume)


def _check_directory(directory: Path, resume: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run.dir: {directory} is a file; give a directory")
    if (directory / CONFIG_FILE).exists() and not resume:
        raise ConfigError(
            f"run.dir: {directory} holds a run already; add --resume to continue it, or take another run.dir"
        )


def _train(assembled: Assembled, directory: Path, ranks: World, resume: bool) -> Outcome:
    run = assembled.config
    module = make_module(assembled)
    engine = Engine(
        module,
        weights=assembled.task.weights,
        optimizer=run.optimizer,
        precision=run.precision,
        zero=read_zero(_zero_file(run), run.precision),
        world=ranks,
        seed=run.run.seed,
        heights={f"model.{name}": height for name, height in heights(module.model).items()},
        log_file=directory / "deepspeed.log",
    )
    checkpoints = Checkpoints(directory / "checkpoints", run.checkpoint, ranks, _fingerprints(assembled))
    state = checkpoints.load_newest(engine)
    done = state.step if state else 0
    loader = StepLoader(
        assembled.train,
        assembled.order,
        assembled.task,
        image_tokens=assembled.task.image_tokens,
        micro_tokens=run.batch.micro_tokens,
        first_step=done,
        last_step=assembled.steps,
        rank=ranks.rank,
        world_size=ranks.size,
        workers=run.data.workers,
        pin_memory=ranks.device.type == "cuda",
    )
    if ranks.is_main:
        _describe(assembled, directory, ranks)
    with Logs(directory, run.log, ranks, steps=assembled.steps, resume_from=done) as logs:
        logs.note(_headline(assembled, ranks, done))
        if resume and state is None:
            logs.note(f"{directory} holds no checkpoint to resume from; this is the first step")
        trainer = Trainer(
            engine,
            loader,
            steps=assembled.steps,
            schedule=run.schedule,
            learning_rate=run.optimizer.learning_rate,
            checkpoints=checkpoints,
            logs=logs,
            first_step=done,
            evaluate=_evaluation(assembled, engine),
            evaluate_every=run.evaluation.every,
            guard=QuarantineGuard(run.data.quarantine_limit),
        )
        outcome = trainer.run()
        if outcome.finished:
            export(assembled, engine, directory / MODEL_DIRECTORY)
            logs.note(f"model: {directory / MODEL_DIRECTORY}")
        if outcome.cut_texts or outcome.quarantined:
            logs.note(
                f"{outcome.cut_texts} texts were cut at the model's limit, {outcome.quarantined} examples replaced"
            )
    engine.close()
    return outcome


def _evaluation(assembled: Assembled, engine: Engine) -> Evaluate | None:
    val, run = assembled.val, assembled.config
    if val is None:
        return None
    judge = Judge(engine, val, run.batch.micro_tokens, run.run.seed, run.evaluation.limit)
    return lambda: judge.metrics(assembled.task)


def export(assembled: Assembled, engine: Engine, directory: Path) -> None:
    """Write the model directory; collective, rank 0 writes."""
    weights = engine.full_weights()
    if engine.world.is_main:
        tensors = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        run = assembled.config
        saved = SavedTask(task=run.task, without=run.data.without, data=assembled.data_fingerprints)
        save_trained(directory, run.model, tensors, saved, assembled.text)


def _zero_file(run: RunConfig) -> Path | None:
    if run.deepspeed is None:
        return None
    if run.deepspeed in resources.names("deepspeed"):
        return resources.shipped("deepspeed", run.deepspeed)
    return Path(run.deepspeed)


def _fingerprints(assembled: Assembled) -> dict[str, str]:
    """What a resumed run must have in common with the one that wrote the checkpoint."""
    run = assembled.config
    weights = [entry.weight for entry in run.data.train]
    parts: dict[str, Any] = {
        "model": run.model.plain(),
        "task": [run.task.plain(), run.data.without],
        "data": [*assembled.data_fingerprints, *weights, run.data.groups, run.data.block_shards],
        "tokenizer": assembled.text.fingerprint,
        "batch.size": run.batch.size,
        "run.seed": run.run.seed,
        "run.steps": assembled.steps,
    }
    return {name: str(part) if isinstance(part, int) else _digest(part) for name, part in parts.items()}


def _digest(part: Any) -> str:
    return hashlib.blake2b(json.dumps(part).encode(), digest_size=8).hexdigest()


def _describe(assembled: Assembled, directory: Path, ranks: World) -> None:
    """What the run is, for who finds its directory later."""
    directory.mkdir(parents=True, exist_ok=True)
    write_yaml(directory / CONFIG_FILE, assembled.config.plain())
    packages = ("torch", "torchvision", "timm", "transformers", "deepspeed", "webdataset", "vlp")
    facts = {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "ranks": ranks.size,
        "device": str(ranks.device),
        "data": assembled.data_fingerprints,
    }
    (directory / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")


def _headline(assembled: Assembled, ranks: World, done: int) -> str:
    run = assembled.config
    start = f", from step {done}" if done else ""
    return (
        f"{run.task.name}: {model_summary(run.model)}; {assembled.order.examples:,} examples, "
        f"{assembled.steps:,} steps of {run.batch.size}; "
        f"{ranks.size} rank{'s' if ranks.size > 1 else ''}, {run.precision}{start}"
    )
