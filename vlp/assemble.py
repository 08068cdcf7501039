"""From a RunConfig to the parts of a run: datasets, tokenizer, model, task, with every `auto` filled in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vlp.data.dataset import Dataset
from vlp.data.index import Index, Texts, open_index
from vlp.data.lengths import token_lengths
from vlp.data.order import Order
from vlp.data.text import TextEncoder
from vlp.errors import ConfigError, DataError
from vlp.models.image import PixelSource
from vlp.models.model import ModelConfig, Sizes, VisionLanguageModel, fill_sizes, read_weights, without_downloads
from vlp.run import RunConfig
from vlp.seeds import derive
from vlp.tasks.module import TaskModule
from vlp.tasks.registry import AnyTaskConfig, make_task
from vlp.tasks.task import Setting, Task
from vlp.tasks.vqa import VqaConfig, answer_vocabulary


@dataclass(frozen=True)
class Assembled:
    """The parts of a run."""

    config: RunConfig
    """Resolved: no `auto` is left, and the model has its heads."""
    text: TextEncoder
    train: list[Dataset]
    val: Dataset | None
    order: Order
    task: Task
    steps: int

    @property
    def data_fingerprints(self) -> tuple[str, ...]:
        return tuple(dataset.index.manifest.fingerprint for dataset in self.train)


def assemble(config: RunConfig) -> Assembled:
    """Open the data and fill in what it fixes.

    Raises:
        ConfigError, DataError, CheckpointError: something does not fit; the message names the key.
    """
    text = TextEncoder(config.tokenizer or config.init or "", config.model.text.max_length)
    texts = config.task.texts
    train = [open_dataset(Path(entry.path), texts, text) for entry in config.data.train]
    val = open_dataset(Path(config.data.val), texts, text) if config.data.val else None
    model = fill_sizes(config.model, _sizes(config, text, [d.index for d in (*train, *([val] if val else []))]))
    order = Order(
        [dataset.examples_S for dataset in train],
        [entry.weight for entry in config.data.train],
        seed=config.run.seed,
        batch_size=config.batch.size,
        groups=config.data.groups,
        block_shards=config.data.block_shards,
    )
    task_config = _filled_task(config.task, train)
    task = make_task(task_config, Setting(model, text, config.run.seed, config.data.without))
    model = model.model_copy(update={"heads": task.heads})
    resolved = config.model_copy(update={"model": model, "task": task_config})
    steps = config.run.steps or math.ceil((config.run.epochs or 0) * order.examples / config.batch.size)
    return Assembled(resolved, text, train, val, order, task, max(1, steps))


def open_dataset(directory: Path, texts: Texts, text: TextEncoder) -> Dataset:
    """An indexed data directory with the lengths of its texts; they are counted at the first time."""
    index = open_index(directory)
    dataset = Dataset(index, texts, token_lengths(index, text.count, text.fingerprint, text.max_length))
    if not dataset.examples_S.sum():
        raise DataError(f"{directory}: no sample has {texts}, which the task takes for its texts; give shards that do")
    return dataset


def make_module(assembled: Assembled) -> TaskModule:
    """The module to train: initial weights from the seed, or from the trained model that `init` names."""
    config = assembled.config
    torch.manual_seed(derive(config.run.seed, "weights"))
    model = VisionLanguageModel(without_downloads(config.model) if config.init else config.model)
    if config.init:
        _start_from(model, Path(config.init))
    return TaskModule(model, assembled.task.objectives)


def _start_from(model: VisionLanguageModel, directory: Path) -> None:
    """Load weights; heads that the trained model lacks stay new, heads that the task does not use are left out."""
    tensors = read_weights(directory)
    own = model.state_dict()
    wrong = [name for name, tensor in own.items() if name in tensors and tensors[name].shape != tensor.shape]
    wrong += [name for name in own if name not in tensors and not name.startswith("heads.")]
    if wrong:
        name = wrong[0]
        found = list(tensors[name].shape) if name in tensors else "nothing"
        raise ConfigError(
            f"init: {directory} does not fit the model: {name} is {list(own[name].shape)} here and {found} there"
        )
    model.load_state_dict({**own, **{name: tensors[name] for name in own if name in tensors}})


def _sizes(config: RunConfig, text: TextEncoder, indexes: Sequence[Index]) -> Sizes:
    """What tokenizer and shards fix; all shards must agree."""
    if config.data.without == "image" or isinstance(config.model.image.source, PixelSource):
        first = indexes[0].manifest
        return Sizes(text.vocab_size, first.feature_width, first.class_count)
    for index in indexes[1:]:
        for what in ("feature_width", "class_count"):
            if getattr(index.manifest, what) != getattr(indexes[0].manifest, what):
                raise ConfigError(
                    f"data: {what.replace('_', ' ')} of the regions is {getattr(index.manifest, what)} in "
                    f"{index.directory} and {getattr(indexes[0].manifest, what)} in {indexes[0].directory}; "
                    "a run needs one"
                )
    return Sizes(text.vocab_size, indexes[0].manifest.feature_width, indexes[0].manifest.class_count)


def _filled_task(task: AnyTaskConfig, train: Sequence[Dataset]) -> AnyTaskConfig:
    if isinstance(task, VqaConfig) and task.answers == "auto":
        return task.model_copy(update={"answers": answer_vocabulary(train, task.min_count)})
    return task


def model_summary(model: ModelConfig) -> str:
    """A line on a model for the start of a log."""
    from vlp.models.model import count_parameters, meta_model

    return f"{count_parameters(meta_model(model)):,} parameters, {sum(b.repeat for b in model.encoder)} blocks"
