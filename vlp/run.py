"""RunConfig: one run = model + data + task + training. Reads a YAML and overrides into it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from vlp import resources
from vlp.config import Config, apply_overrides, read_yaml
from vlp.data.augment import AugmentConfig
from vlp.data.cache import CacheConfig
from vlp.errors import ConfigError, nearest
from vlp.models.model import ModelConfig, read_config
from vlp.models.transfer import TransferConfig
from vlp.tasks.registry import AnyTaskConfig
from vlp.tasks.task import Without
from vlp.train.checkpoint import CheckpointConfig
from vlp.train.ema import EmaConfig
from vlp.train.evaluation import EvaluationConfig
from vlp.train.guard import GuardConfig
from vlp.train.logs import LogConfig
from vlp.train.optimizer import OptimizerConfig
from vlp.train.penalty import PenaltyConfig
from vlp.train.profiler import ProfileConfig
from vlp.train.schedule import ScheduleConfig
from vlp.train.zero import Precision


class DatasetConfig(Config):
    """One dataset of a mixture."""

    path: str
    """A directory of indexed shards, or the URL of one (s3://, gs://, hf://, https://)."""
    weight: float | None = Field(None, gt=0)
    """Its part of the mixture; only proportions matter (default: 1 each, unless `temperature` is given)."""
    text_only: bool = False
    """Take its texts alone, without their images; a dataset that has none is text only by itself."""


class DataConfig(Config):
    """What is read."""

    train: tuple[DatasetConfig, ...] = Field(min_length=1)
    """A directory, or a list of directories or of {path, weight}."""
    temperature: float | None = Field(None, ge=1)
    """Instead of weights: each dataset gets examples ** (1 / temperature). 1 mixes by size, larger evens sizes out."""
    text_only_share: float = Field(0.0, ge=0, lt=1)
    """Share of each batch that is texts of these datasets without their images, beside the pairs."""
    val: str | None = None
    """A directory that evaluation reads."""
    groups: int = Field(1, ge=1)
    """Groups that the shards are dealt to; a node reads only its groups. More than one pays off on many nodes."""
    block_shards: int = Field(8, ge=1)
    """Shards whose examples are shuffled together."""
    workers: int = Field(0, ge=0)
    """Loader processes per rank; 0 prepares each step in the training process."""
    quarantine_limit: float = Field(0.01, ge=0, le=1)
    """Share of the examples seen that may be unreadable, and replaced, before the run stops."""
    cache: CacheConfig = CacheConfig()
    """Where remote data are kept on this machine."""
    without: Without | None = None
    """Leave out a modality, to measure what the other can do alone."""
    augment: AugmentConfig | None = None
    """How training looks at images anew in each epoch; null shows them as they are, as evaluation does."""

    @model_validator(mode="after")
    def _one_mixture(self) -> Self:
        if self.temperature is not None and any(entry.weight is not None for entry in self.train):
            raise ValueError("temperature and a weight are both given, and either fixes the mixture; take one back")
        return self

    @field_validator("train", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        values = [value] if isinstance(value, (str, dict)) else value
        if isinstance(values, (list, tuple)):
            return [{"path": item} if isinstance(item, str) else item for item in values]
        return values


class BatchConfig(Config):
    """How much of the data a step takes."""

    size: int = Field(256, ge=1)
    """Examples of an optimizer step, over all ranks and micro-batches."""
    micro_tokens: int = Field(8192, ge=1)
    """Most tokens (text and image) of a micro-batch; bounds memory, changes nothing else."""


class RunSection(Config):
    """The run itself."""

    dir: str
    """Where everything it makes is put; relative to the current directory."""
    seed: int = Field(0, ge=0)
    """Order, masks, negatives, initial weights and dropout derive from it."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; or give `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the training examples; or give `steps`."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given; take one back, as with run.steps=null")
        if self.steps is None and self.epochs is None:
            raise ValueError("give either steps or epochs")
        return self


class RunConfig(Config):
    """One run."""

    model: ModelConfig
    """The name of a shipped config, a file, the directory of a trained model, or a mapping. In a file, `model.KEY: x`
    beside it changes a key of what it stands for."""
    init: str | None = None
    """Directory of the trained model whose weights the run starts from; set by `model` when that is a directory."""
    tokenizer: str | None = None
    """A directory or hub id; by default that of the trained model the run starts from."""
    task: AnyTaskConfig
    """What the model learns."""
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    transfer: TransferConfig = TransferConfig()
    """What of the model learns: all of it, or not what is frozen, or adapters."""
    penalty: PenaltyConfig | None = None
    """A penalty on the weights; null for none."""
    precision: Precision = "fp32"
    """Of forward and backward; the optimizer keeps fp32 weights in either case."""
    deepspeed: str | None = None
    """The name of a shipped DeepSpeed config (zero1, zero2, ...) or a JSON file: ZeRO and offload only."""
    ema: EmaConfig | None = None
    """Keep a running mean of the weights, which evaluation and the exported model use; null for none."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guard: GuardConfig = GuardConfig()
    profile: ProfileConfig | None = None
    """Trace some steps; null for none."""
    log: LogConfig = LogConfig()
    run: RunSection

    @model_validator(mode="after")
    def _can_keep_best(self) -> Self:
        if self.checkpoint.keep_best and self.evaluation.metric is None:
            raise ValueError("checkpoint.keep_best needs evaluation.metric, the name of the metric that decides")
        if self.data.val is None and (self.checkpoint.keep_best or self.evaluation.every):
            raise ValueError("evaluation.every and checkpoint.keep_best need data.val, which there is none of")
        return self

    @model_validator(mode="after")
    def _has_tokenizer(self) -> Self:
        if self.tokenizer is None and self.init is None and self.model.text.weights is None:
            raise ValueError("tokenizer is missing: give a directory or hub id (or a trained model, which has one)")
        return self


Command = Literal["pretrain", "finetune"]


def load_run(config: str, overrides: Sequence[str], command: Command) -> RunConfig:
    """The run of a config file (or shipped name) and overrides.

    Paths in the file are relative to the file; those in overrides, and `run.dir`, to the current directory.

    Raises:
        ConfigError: one sentence with file and key.
    """
    path = config_file(config, command)
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of sections, such as model, data and task")
    return run_of(values, overrides, path)


def run_of(values: dict[str, Any], overrides: Sequence[str], path: Path) -> RunConfig:
    """The run of what a file holds and overrides, as `load_run` makes it."""
    values = _anchored(values, path.parent)
    named = [o for o in overrides if not o.startswith("model.")]
    values = apply_overrides(values, named)
    # `model.KEY: value` of the file, beside a model's name, changes what the name stands for, as an override does.
    changes = [f"{key}={json.dumps(values.pop(key))}" for key in list(values) if str(key).startswith("model.")]
    values = _with_model(values, changes + [o for o in overrides if o.startswith("model.")], str(path))
    return RunConfig.parse(values, str(path))


def config_file(config: str, command: Command) -> Path:
    """The file that a config argument names: a path, or a shipped config of the command."""
    if os.sep in config or config.endswith((".yaml", ".yml")):
        return Path(config)
    if Path(config).is_file():
        return Path(config)
    if config in resources.names(command):
        return resources.shipped(command, config)
    raise ConfigError(
        f"no config file or shipped {command} config is called '{config}'{nearest(config, resources.names(command))}"
    )


def _anchored(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The file's relative paths made to hold from anywhere, where something stands at them.

    The name of a shipped config stays a name, whatever stands beside the file.
    """

    def anchor(value: Any) -> Any:
        if isinstance(value, str) and not os.path.isabs(value) and (folder / value).exists():
            return str(folder / value)
        if isinstance(value, list):
            return [anchor(item) for item in value]
        return {k: anchor(v) if k == "path" else v for k, v in value.items()} if isinstance(value, dict) else value

    result = dict(values)
    shipped: dict[str, tuple[str, ...]] = {key: resources.names(key) for key in ("model", "deepspeed")}
    for key in ("model", "init", "tokenizer", "deepspeed"):
        if isinstance(result.get(key), str) and result[key] not in shipped.get(key, ()):
            result[key] = anchor(result[key])
    if isinstance(result.get("model"), dict):
        result["model"] = _anchored_model(result["model"], folder)
    if isinstance(result.get("data"), dict):
        result["data"] = {k: anchor(v) if k in ("train", "val") else v for k, v in result["data"].items()}
    return result


WEIGHTS = (("text", "weights", "source"), ("image", "source", "weights"), ("image", "grid", "source", "weights"))
"""Keys of a model that may name files."""


def _anchored_model(model: Any, folder: Path) -> Any:
    """A model's mapping whose relative paths hold from anywhere, where something stands at them."""
    result = deepcopy(model)
    for *sections, key in WEIGHTS:
        section = result
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(key), str) and (folder / section[key]).exists():
            section[key] = str(folder / section[key])
    return result


def _with_model(values: dict[str, Any], overrides: list[str], where: str) -> dict[str, Any]:
    """The values with `model` as a mapping, and overrides that reach into it applied."""
    model = values.get("model")
    if isinstance(model, str):
        if Path(model).is_dir() and model not in resources.names("model"):
            config = read_config(Path(model)).plain()
            values = {**values, "model": {**config, "heads": {}}, "init": model}
        else:
            file = _model_file(model, where)
            values = {**values, "model": _anchored_model(read_yaml(file), file.parent)}
    return apply_overrides(values, overrides)


def _model_file(model: str, where: str) -> Path:
    if model in resources.names("model"):
        return resources.shipped("model", model)
    if Path(model).is_file():
        return Path(model)
    raise ConfigError(
        f"{where}: model: '{model}' is no shipped model, file or directory of a trained model"
        f"{nearest(model, resources.names('model'))}"
    )
