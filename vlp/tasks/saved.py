"""A trained model on disk with all that is needed to use it: weights, model config, task, tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from torch import Tensor

from vlp.config import Config, read_json
from vlp.data.text import TextEncoder
from vlp.errors import CheckpointError, ConfigError
from vlp.models.model import ModelConfig, Network, read_config, save_pretrained, without_downloads
from vlp.tasks.card import CARD_FILE, TRAINING_FILE, Training, model_card
from vlp.tasks.module import TaskModule
from vlp.tasks.registry import AnyTaskConfig, make_task
from vlp.tasks.task import Setting, Task, Without

TASK_FILE = "task.json"


class SavedTask(Config):
    """What `task.json` beside the weights says."""

    task: AnyTaskConfig
    """The task that the model was trained for, filled in."""
    without: Without | None = None
    """A modality that the examples lacked."""
    data: tuple[str, ...] = Field(default=())
    """Fingerprints of the training data."""


@dataclass(frozen=True)
class Trained:
    """A model with the task that it was trained for."""

    model: Network
    task: Task
    saved: SavedTask

    def module(self) -> TaskModule:
        return TaskModule(self.model, self.task.objectives)


def save_trained(
    directory: Path,
    config: ModelConfig,
    tensors: dict[str, Tensor],
    saved: SavedTask | None,
    text: TextEncoder | None,
    training: Training | None = None,
    name: str = "",
) -> None:
    """Write a model directory: weights, config, tokenizer, card, and what is known of task and training.

    Args:
        name: what the card calls the model (default: the directory's name).
    """
    config = without_downloads(config)  # it starts from nothing else any more, and its files may lie on this machine
    save_pretrained(directory, config, tensors)
    for file, record in ((TASK_FILE, saved), (TRAINING_FILE, training)):
        if record is not None:
            lines = json.dumps(record.plain(), indent=1, ensure_ascii=False)
            (directory / file).write_text(lines + "\n", encoding="utf-8")
    if text is not None:
        text.save(directory)
    card = model_card(config, saved.task.name if saved else None, training, name or directory.resolve().name)
    (directory / CARD_FILE).write_text(card, encoding="utf-8")


def read_saved(directory: Path) -> SavedTask:
    """The task of a model directory.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = directory / TASK_FILE
    try:
        return SavedTask.parse(read_json(path), str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: not the task of a trained model: {error}") from None


def read_training(directory: Path) -> Training | None:
    """How the model came to be, if its directory says so.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = directory / TRAINING_FILE
    if not path.exists():
        return None
    try:
        return Training.parse(read_json(path), str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: not the record of a training: {error}") from None


def load_trained(
    directory: Path, *, task: AnyTaskConfig | None = None, without: Without | None = None, seed: int = 0
) -> Trained:
    """A trained model.

    Args:
        task: another task than its own, which must find its heads among the model's.
        without: a modality that examples shall lack, if they did not in training.
    Raises:
        CheckpointError: the directory does not hold a trained model.
        ConfigError: the model lacks a head that the task needs; its heads are named.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory; give the model/ of a run")
    saved = read_saved(directory)
    config = read_config(directory)
    text = TextEncoder(directory, config.text.max_length, config.text.add_tokens)
    wanted = saved.task if task is None else task
    made = make_task(wanted, Setting(config, text, seed, without or saved.without))
    lacking = [name for name, head in made.heads.items() if config.heads.get(name) != head]
    if lacking:
        raise ConfigError(
            f"task '{wanted.name}' needs a head '{lacking[0]}' that {directory} lacks "
            f"(it has: {', '.join(config.heads) or 'none'}); fine-tune for the task first"
        )
    return Trained(Network.from_pretrained(directory), made, saved)
