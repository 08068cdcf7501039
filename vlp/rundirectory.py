"""What a run's directory says of the run: resolved config, versions, commands, seed; and what makes it the same run."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vlp.assemble import Assembled
from vlp.config import read_json, read_yaml, write_yaml
from vlp.data.arrays import write_whole
from vlp.data.dataset import Dataset
from vlp.distributed import World
from vlp.errors import ConfigError
from vlp.export import CONFIG_FILE, FACTS_FILE, TOKENIZER_DIRECTORY
from vlp.tasks.card import DataFacts, Training, shown
from vlp.tasks.saved import SavedTask
from vlp.train.changes import differences

PACKAGES = ("torch", "torchvision", "timm", "transformers", "deepspeed", "webdataset", "vlp")


def identity(assembled: Assembled) -> dict[str, Any]:
    """What a resumed run must have in common with the one that wrote the checkpoint."""
    run = assembled.config
    return {
        "model": _lasting(run.model.plain()),
        "transfer": run.transfer.plain(),
        "task": run.task.plain(),
        "data.without": run.data.without,
        "data.augment": run.data.augment and run.data.augment.plain(),
        "data.train": [f"fingerprint {name}" for name in assembled.data_fingerprints],
        "data.train weights": [entry.weight for entry in run.data.train],
        "data.train text_only": [entry.text_only for entry in run.data.train],
        "data.text_only_share": run.data.text_only_share,
        "data.temperature": run.data.temperature,
        "data.groups": run.data.groups,
        "data.block_shards": run.data.block_shards,
        "tokenizer": assembled.text.fingerprint,
        "batch.size": run.batch.size,
        "run.seed": run.run.seed,
        "run.steps": assembled.steps,
    }


def _lasting(model: Any) -> Any:
    """A model's config less what changes no number, so that a run may go on with it changed."""
    if not isinstance(model, dict):
        return model
    return {key: _lasting(value) for key, value in model.items() if key != "checkpointing"}


def changeable(assembled: Assembled) -> dict[str, Any]:
    """What a resumed run may change of how it learns; it is told that it does."""
    run = assembled.config.plain()
    return {name: run[name] for name in ("optimizer", "schedule", "precision", "penalty", "ema")}


def describe(assembled: Assembled, directory: Path, ranks: World, step: int) -> None:
    """Write what the run is, for who finds its directory later. What its earlier starts were stays.

    Args:
        step: steps done when this start of the run begins.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for half in directory.rglob(".*.partial"):  # a run was killed while it wrote it
        if half.is_file():
            half.unlink()
    config = assembled.config.plain()
    start = {
        "command": sys.argv,
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from_step": step,
        "seed": assembled.config.run.seed,
        "ranks": ranks.size,
        "device": str(ranks.device),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    before = _read(directory / FACTS_FILE)
    earlier = [*before.get("earlier_starts", []), {name: before.get(name) for name in start}] if before else []
    facts = start | {
        "data": assembled.data_fingerprints,
        # What `vlp export` needs besides a checkpoint.
        "saved": saved_task(assembled).plain(),
        "training": training_record(assembled, {}).plain(),
        # Of a run that was resumed.
        "changed": differences(_config_before(directory), config) if before else {},
        "earlier_starts": earlier,
    }
    assembled.text.save(directory / TOKENIZER_DIRECTORY)
    write_whole(directory / FACTS_FILE, (json.dumps(facts, indent=1) + "\n").encode())
    partial = directory / f".{CONFIG_FILE}.partial"
    write_yaml(partial, config)
    partial.replace(directory / CONFIG_FILE)


def _read(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = read_json(path)
        return facts
    except (OSError, ValueError):
        return {}


def _config_before(directory: Path) -> Mapping[str, Any]:
    try:
        config: Mapping[str, Any] = read_yaml(directory / CONFIG_FILE)
        return config
    except ConfigError:
        return {}


def saved_task(assembled: Assembled) -> SavedTask:
    """What a model directory says of its task."""
    run = assembled.config
    return SavedTask(task=run.task, without=run.data.without, data=assembled.data_fingerprints)


def training_record(assembled: Assembled, metrics: Mapping[str, float]) -> Training:
    """What the model's card says of its training."""
    recipe = shown(assembled.config.plain())
    recipe["starts_from"] = _starts(recipe)
    for section in ("model", "init", "log"):
        del recipe[section]
    del recipe["run"]["dir"]
    return Training(
        steps=assembled.steps,
        recipe=recipe,
        # A dataset may stand in a mixture twice, with and without its images.
        data=tuple(map(_data_facts, {dataset.directory: dataset for dataset in assembled.train}.values())),
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
