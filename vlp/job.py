"""A training run from its config to its model: what `vlp pretrain` and `vlp finetune` do on each rank."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlp.assemble import Assembled, assemble, make_module, model_summary
from vlp.config import write_yaml
from vlp.data.dataset import Dataset
from vlp.data.loader import StepLoader
from vlp.distributed import World, barrier, world
from vlp.errors import ConfigError
from vlp.export import CONFIG_FILE, FACTS_FILE, MODEL_DIRECTORY, TOKENIZER_DIRECTORY, model_weights
from vlp.models.heights import heights
from vlp.run import Command, load_run
from vlp.tasks.card import DataFacts, Training, shown
from vlp.tasks.judge import Judge
from vlp.tasks.saved import SavedTask, save_trained
from vlp.train.checkpoint import Checkpoints
from vlp.train.checkpointfiles import CHECKPOINTS
from vlp.train.engine import Engine
from vlp.train.evaluation import Evaluation
from vlp.train.guard import Guard
from vlp.train.hooks import Hook
from vlp.train.logs import Logs
from vlp.train.profiler import Profiler
from vlp.train.quarantine import Quarantine
from vlp.train.saver import Saver
from vlp.train.trainer import Outcome, Trainer
from vlp.train.watchdog import Watchdog
from vlp.train.zero import read_zero, zero_file

PACKAGES = ("torch", "torchvision", "timm", "transformers", "deepspeed", "webdataset", "vlp")


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
    notes: list[str] = []
    module = make_module(assembled, notes.append)
    engine = Engine(
        module,
        weights=assembled.task.weights,
        optimizer=run.optimizer,
        precision=run.precision,
        zero=read_zero(zero_file(run.deepspeed), run.precision),
        world=ranks,
        seed=run.run.seed,
        heights={f"model.{name}": height for name, height in heights(module.model).items()},
        ema=run.ema,
        penalty=run.penalty,
        log_file=directory / "deepspeed.log",
    )
    checkpoints = Checkpoints(directory / CHECKPOINTS, run.checkpoint, ranks, _fingerprints(assembled))
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
        augment=run.data.augment,
    )
    if ranks.is_main:
        _describe(assembled, directory, ranks)
    evaluation = _evaluation(assembled, engine)
    with Logs(directory, run.log, ranks, steps=assembled.steps, resume_from=done) as logs:
        logs.note(_headline(assembled, ranks, done))
        for note in notes if not done else ():
            logs.note(note)
        if resume and state is None:
            logs.note(f"{directory} holds no checkpoint to resume from; this is the first step")
        if evaluation is not None and state is not None:
            evaluation.restore(state.facts)
        with Watchdog(run.guard.step_minutes, ranks.rank) as watchdog:
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
            export(assembled, engine, directory / MODEL_DIRECTORY, outcome.evaluation)
            logs.note(f"model: {directory / MODEL_DIRECTORY}")
        if outcome.cut_texts or outcome.quarantined:
            logs.note(
                f"{outcome.cut_texts} texts were cut at the model's limit, {outcome.quarantined} examples replaced"
            )
    engine.close()
    return outcome


def _hooks(assembled: Assembled, directory: Path, logs: Logs, ranks: World) -> list[Hook]:
    run = assembled.config
    hooks: list[Hook] = [Quarantine(run.data.quarantine_limit, logs, ranks), Guard(run.guard, logs, ranks)]
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
        history, name = _history(assembled, metrics), Path(run.run.dir).resolve().name
        save_trained(directory, run.model, tensors, _saved(assembled), assembled.text, history, name)


def _saved(assembled: Assembled) -> SavedTask:
    run = assembled.config
    return SavedTask(task=run.task, without=run.data.without, data=assembled.data_fingerprints)


def _history(assembled: Assembled, metrics: Mapping[str, float]) -> Training:
    """What the model's card says of its training."""
    recipe = shown(assembled.config.plain())
    recipe["starts_from"] = _starts(recipe)
    for section in ("model", "init", "log"):
        del recipe[section]
    del recipe["run"]["dir"]
    return Training(
        steps=assembled.steps,
        recipe=recipe,
        data=tuple(_data_facts(dataset) for dataset in assembled.train),
        judged_on=_data_facts(assembled.val) if assembled.val else None,
        metrics=dict(metrics),
        versions={name: version(name) for name in PACKAGES},
    )


def _starts(recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the initial weights came from; None for random ones."""
    if recipe["init"]:
        return {"model": recipe["init"]}
    text, image = recipe["model"]["text"]["weights"], recipe["model"]["image"]
    pixels = [source for source in (image["source"], (image["grid"] or {}).get("source")) if source]
    own = [{key: source.get(key) for key in ("backbone", "pretrained", "weights")} for source in pixels]
    started = {"text": text, "image": [source for source in own if source["pretrained"] or source["weights"]]}
    return {key: value for key, value in started.items() if value} or None


def _data_facts(dataset: Dataset) -> DataFacts:
    manifest = dataset.index.manifest
    return DataFacts(
        name=str(dataset.index.directory).rstrip("/").rsplit("/", 1)[-1],
        examples=int(dataset.examples_S.sum()),
        fingerprint=manifest.fingerprint,
        made_by=shown(manifest.made_by),
    )


def _fingerprints(assembled: Assembled) -> dict[str, str]:
    """What a resumed run must have in common with the one that wrote the checkpoint."""
    run = assembled.config
    weights = [*(entry.weight for entry in run.data.train), run.data.temperature]
    parts: dict[str, Any] = {
        "model": [run.model.plain(), run.transfer.plain()],
        "task": [run.task.plain(), run.data.without, run.data.augment and run.data.augment.plain()],
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
    facts = {
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "ranks": ranks.size,
        "device": str(ranks.device),
        "data": assembled.data_fingerprints,
        # What `vlp export` needs besides a checkpoint.
        "saved": _saved(assembled).plain(),
        "training": _history(assembled, {}).plain(),
    }
    assembled.text.save(directory / TOKENIZER_DIRECTORY)
    (directory / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")


def _headline(assembled: Assembled, ranks: World, done: int) -> str:
    run = assembled.config
    start = f", from step {done}" if done else ""
    return (
        f"{run.task.name}: {model_summary(run.model)}; {assembled.order.examples:,} examples, "
        f"{assembled.steps:,} steps of {run.batch.size}; "
        f"{ranks.size} rank{'s' if ranks.size > 1 else ''}, {run.precision}{start}"
    )
