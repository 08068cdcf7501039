"""The run that is planned: a run's config, or a model's with a usual recipe around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlp import resources
from vlp.config import read_yaml
from vlp.errors import ConfigError, nearest
from vlp.run import RunConfig, load_run, run_of

RECIPE: dict[str, Any] = {
    "task": {
        "name": "pretrain",
        "objectives": {"mlm": {"kind": "masked_language"}, "itm": {"kind": "matching"}},
    },
    "data": {"train": "data"},
    "tokenizer": "tokenizer",
    "batch": {"size": 4096, "micro_tokens": 16384},
    "precision": "bf16",
    "deepspeed": "zero2",
    "run": {"dir": "runs/plan", "steps": 100_000},
}
"""Around a model that is planned without a recipe of its own."""


def planned_run(config: str, overrides: Sequence[str]) -> RunConfig:
    """The run of a config.

    Args:
        config: a file of a run or a model, or the shipped name of one.
    Raises:
        ConfigError: there is none, or it is not right.
    """
    for command in ("pretrain", "finetune"):
        if config in resources.names(command):
            return load_run(config, overrides, command)
    if config in resources.names("model"):
        return run_of({**RECIPE, "model": config}, overrides, resources.shipped("model", config))
    path = Path(config)
    if not path.is_file():
        known = (*resources.names("pretrain"), *resources.names("finetune"), *resources.names("model"))
        raise ConfigError(f"no config file, shipped run or shipped model is called '{config}'{nearest(config, known)}")
    values = read_yaml(path)
    if isinstance(values, dict) and "task" in values:
        return load_run(str(path.resolve()), overrides, "pretrain")
    return run_of({**RECIPE, "model": str(path.resolve())}, overrides, path)
