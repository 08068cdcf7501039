"""From a RunConfig to the parts of a run: datasets, tokenizer, model, task, loader, with every `auto` filled in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vlp.data.cache import CacheConfig
from vlp.data.dataset import Dataset
from vlp.data.index import Index, Texts, open_index
from vlp.data.lengths import token_lengths
from vlp.data.loader import StepLoader
from vlp.data.mixture import by_temperature
from vlp.data.order import Order
from vlp.data.text import TextEncoder
from vlp.distributed import World
from vlp.errors import ConfigError, DataError
from vlp.models.blocks import unrolled
from vlp.models.image import RegionSource
from vlp.models.model import ModelConfig, Network, Sizes, fill_sizes, without_downloads
from vlp.models.start import start
from vlp.models.textsource import has_tokenizer, text_model_directory
from vlp.models.transfer import apply_transfer
from vlp.objectives.itc import Contrast
from vlp.objectives.question import QuestionAnsweringConfig
from vlp.objectives.registry import AnyObjectiveConfig
from vlp.run import RunConfig
from vlp.seeds import derive
from vlp.tasks.classify import ClassifyConfig, labels_of
from vlp.tasks.module import TaskModule
from vlp.tasks.pretrain import PretrainConfig
from vlp.tasks.registry import AnyTaskConfig, make_task
from vlp.tasks.saved import TASK_FILE, read_saved
from vlp.tasks.task import Setting, Task
from vlp.tasks.vocabulary import answer_vocabulary
from vlp.tasks.vqa import VqaConfig


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
        return tuple(dict.fromkeys(dataset.index.manifest.fingerprint for dataset in self.train))


def assemble(config: RunConfig) -> Assembled:
    """Open the data and fill in what it fixes.

    Raises:
        ConfigError, DataError, CheckpointError: something does not fit; the message names the key.
    """
    text = _text_encoder(config)
    texts = config.task.texts
    cache = config.data.cache
    train = [open_dataset(entry.path, texts, text, cache, entry.text_only) for entry in config.data.train]
    weights = _weights(config, train)
    train, weights = _with_texts_alone(train, weights, config.data.text_only_share)
    val = open_dataset(config.data.val, texts, text, cache) if config.data.val else None
    _check_augment(config)
    model = fill_sizes(config.model, _sizes(config, text, [*train, *([val] if val else [])]))
    order = Order(
        [dataset.examples_S for dataset in train],
        weights,
        seed=config.run.seed,
        batch_size=config.batch.size,
        groups=config.data.groups,
        block_shards=config.data.block_shards,
    )
    task_config = _filled_task(config.task, train)
    task = make_task(task_config, Setting(model, text, config.run.seed, config.data.without))
    for objective in task.objectives.values():
        if isinstance(objective, Contrast):
            objective.check_sides()
    model = model.model_copy(update={"heads": task.heads})
    resolved = config.model_copy(update={"model": model, "task": task_config})
    steps = config.run.steps or math.ceil((config.run.epochs or 0) * order.examples / config.batch.size)
    return Assembled(resolved, text, train, val, order, task, max(1, steps))


def _text_encoder(config: RunConfig) -> TextEncoder:
    """The tokenizer of the config, of the trained model, or of the text model whose weights a new one starts from."""
    own, started = config.model.text, None if config.init else config.model.text.weights
    source = config.tokenizer or config.init or (started.source if started else "")
    if started is None:
        return TextEncoder(source, own.max_length, own.add_tokens)
    directory = text_model_directory(started.source)
    if source == started.source:
        return TextEncoder(directory, own.max_length, own.add_tokens)
    text = TextEncoder(source, own.max_length, own.add_tokens)
    if has_tokenizer(directory):
        _check_words(text, TextEncoder(directory, own.max_length), source, started.source)
    return text


def _check_words(text: TextEncoder, theirs: TextEncoder, source: str, started: str) -> None:
    """Refuse words whose pre-trained rows would be those of other words."""
    known = {number: word for word, number in theirs.vocabulary.items()}
    for word, number in sorted(text.vocabulary.items(), key=lambda item: item[1]):
        if known.get(number, word) != word:
            raise ConfigError(
                f"tokenizer: token {number} is '{word}' in {source} and '{known[number]}' in {started}, which "
                "model.text.weights starts from; leave tokenizer out to take that one"
            )


def _weights(config: RunConfig, train: Sequence[Dataset]) -> list[float]:
    """What part of the mixture each dataset makes."""
    if config.data.temperature is None:
        return [1.0 if entry.weight is None else entry.weight for entry in config.data.train]
    return by_temperature([int(dataset.examples_S.sum()) for dataset in train], config.data.temperature)


def _with_texts_alone(train: list[Dataset], weights: list[float], share: float) -> tuple[list[Dataset], list[float]]:
    """The mixture, and beside each dataset its texts alone, so that these are the given share of all draws."""
    if not share:
        return train, weights
    alone = [Dataset(each.index, each.texts, each.lengths, text_only=True) for each in train]
    return [*train, *alone], [*weights, *(weight * share / (1 - share) for weight in weights)]


def _check_augment(config: RunConfig) -> None:
    augment = config.data.augment
    if (
        augment is None
        or not isinstance(config.model.image.source, RegionSource)
        or config.model.image.grid is not None
    ):
        return
    if augment.colour is not None:
        raise ConfigError("data.augment.colour: changes pixels, and the model reads regions only; take it back")


def open_dataset(
    directory: Path | str,
    texts: Texts,
    text: TextEncoder,
    cache: CacheConfig | None = None,
    text_only: bool = False,
    otherwise: str = "give shards that do",
) -> Dataset:
    """An indexed data directory, local or remote, with the lengths of its texts; they are counted at the first time.

    Args:
        otherwise: what to do where no sample has such texts.
    """
    index = open_index(directory, cache)
    lengths = token_lengths(index, text.count, text.fingerprint, text.max_length)
    dataset = Dataset(index, texts, lengths, text_only=text_only)
    if not dataset.examples_S.sum():
        raise DataError(f"{dataset.directory}: no sample has {texts}, which the task takes for its texts; {otherwise}")
    return dataset


def make_module(assembled: Assembled, note: Callable[[str], object] = lambda said: None) -> TaskModule:
    """The module to train: initial weights from the seed, and from pre-trained models where the config says so.

    Args:
        note: is told what the weights come from, a line each.
    """
    config = assembled.config
    torch.manual_seed(derive(config.run.seed, "weights"))
    model = Network(without_downloads(config.model) if config.init else config.model)
    init = Path(config.init) if config.init else None
    for line in start(model, init, _of_other_classes(config.task, init)):
        note(line)
    if line := apply_transfer(model, config.transfer):
        note(line)
    return TaskModule(model, assembled.task.objectives)


def make_loader(assembled: Assembled, steps: range, ranks: World | None = None) -> StepLoader:
    """Some steps of a run, as one of its ranks reads them.

    Args:
        ranks: this process among all; None for one alone.
    """
    run = assembled.config
    return StepLoader(
        assembled.train,
        assembled.order,
        assembled.task,
        image_tokens=assembled.task.image_tokens,
        micro_tokens=run.batch.micro_tokens,
        first_step=steps.start,
        last_step=steps.stop,
        rank=ranks.rank if ranks else 0,
        world_size=ranks.size if ranks else 1,
        workers=run.data.workers,
        pin_memory=ranks is not None and ranks.device.type == "cuda",
        augment=run.data.augment,
    )


def _of_other_classes(task: AnyTaskConfig, init: Path | None) -> frozenset[str]:
    """The heads of a trained model whose classes stand for other answers or labels than the task's."""
    if init is None or not (init / TASK_FILE).exists():
        return frozenset()
    theirs = read_saved(init).task.classes
    return frozenset(name for name, own in task.classes.items() if theirs.get(name, own) != own)


def _sizes(config: RunConfig, text: TextEncoder, datasets: Sequence[Dataset]) -> Sizes:
    """What tokenizer and shards fix; all shards whose images are looked at must agree."""
    seen = [each.index for each in datasets if not (each.text_only or each.index.manifest.text_only)]
    indexes = seen or [datasets[0].index]
    if config.data.without == "image" or not isinstance(config.model.image.source, RegionSource):
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
        _check_makers(indexes[0], index)
    manifests = [index.manifest for index in indexes]
    sizes = Sizes(
        text.vocab_size,
        manifests[0].feature_width,
        manifests[0].class_count,
        max((manifest.class_ids or 0 for manifest in manifests), default=0) or None,
        max((manifest.attribute_ids or 0 for manifest in manifests), default=0) or None,
    )
    _check_labels(config.task, sizes)
    return sizes


def _check_makers(one: Index, other: Index) -> None:
    """Refuse regions of two networks: equal widths do not make their features alike."""
    made = [index.manifest.made_by.get("regions") for index in (one, other)]
    weights = [notes.get("weights") if isinstance(notes, dict) else None for notes in made]
    if None not in weights and weights[0] != weights[1]:
        raise ConfigError(
            f"data: the regions of {one.directory} were made with the weights {weights[0]} and those of "
            f"{other.directory} with {weights[1]}, so their features do not compare; make both with one network"
        )


def _check_labels(task: AnyTaskConfig, sizes: Sizes) -> None:
    """Refuse to guess class probabilities that no shard holds."""
    for name, objective in task.objectives.items() if isinstance(task, PretrainConfig) else ():
        soft = objective.kind == "region_class" and objective.labels == "soft"
        if soft and sizes.classes is None and sizes.class_ids is not None:
            raise ConfigError(
                f"task.objectives.{name}: needs class probabilities of the regions, and the shards of data.train hold "
                "numbers of classes alone (<key>.classes.npy); say labels: hard"
            )


def _filled_task(task: AnyTaskConfig, train: Sequence[Dataset]) -> AnyTaskConfig:
    if isinstance(task, VqaConfig) and task.answers == "auto":
        return task.model_copy(update={"answers": answer_vocabulary(train, task.min_count)})
    if isinstance(task, PretrainConfig):
        return task.model_copy(update={"objectives": _with_answers(task.objectives, train)})
    if isinstance(task, ClassifyConfig) and task.labels == "auto":
        return task.model_copy(update={"labels": labels_of(train)})
    return task


def _with_answers(objectives: dict[str, AnyObjectiveConfig], train: Sequence[Dataset]) -> dict[str, AnyObjectiveConfig]:
    """The objectives, those that answer questions with their vocabulary."""
    filled = dict(objectives)
    for name, own in objectives.items():
        if isinstance(own, QuestionAnsweringConfig) and own.answers == "auto":
            answers = answer_vocabulary(train, own.min_count, own.most)
            filled[name] = own.model_copy(update={"answers": answers})
    return filled


def model_summary(model: ModelConfig) -> str:
    """A line on a model for the start of a log."""
    from vlp.models.model import count_parameters, meta_model

    return f"{count_parameters(meta_model(model)):,} parameters, {sum(1 for _ in unrolled(model.encoder))} blocks"
