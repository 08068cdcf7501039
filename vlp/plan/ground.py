"""What a plan is worked out from: a run with its sizes filled in, and what its examples look like.

Both come from the run's data where they are there. Where they are not, sizes are assumed, and the lengths of texts and
images are as given.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from vlp.assemble import assemble
from vlp.data.dataset import Dataset
from vlp.data.storage import remote_url
from vlp.data.tables import Block, open_block
from vlp.data.text import TextEncoder
from vlp.models.assumed import assumed_sizes
from vlp.models.image import images_of
from vlp.models.model import ModelConfig, fill_sizes
from vlp.objectives.itc import Contrast
from vlp.objectives.itm import Matching, MatchingConfig
from vlp.objectives.negatives import MOST
from vlp.objectives.question import QuestionAnsweringConfig
from vlp.objectives.registry import AnyObjectiveConfig
from vlp.run import RunConfig
from vlp.seeds import draw
from vlp.tasks.classify import ClassifyConfig
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.tasks.registry import AnyTaskConfig, make_task
from vlp.tasks.task import Setting, Task
from vlp.tasks.vqa import VqaConfig
from vlp.train.rematching import Texts, rematched
from vlp.types import Batch, Example, Question, Regions, Sample, Slot

_ANSWERS, _LABELS = 3129, 3
"""Answers of VQA v2 as the field takes them, and the labels of SNLI-VE; assumed where the data are missing."""
_LOOKED_AT = 8
"""Shards of each dataset whose tables tell the mean lengths."""


@dataclass(frozen=True)
class Ground:
    """A run as a plan sees it."""

    config: RunConfig
    """With sizes, heads and task filled in."""
    task: Task
    text_tokens: int
    """Of an example's text, specials included; the mean."""
    regions: int
    """Of its image, if the model reads regions; the mean."""
    examples: int | None
    """Of the training data; None where they are missing."""
    shards: int | None
    bytes: int | None
    """Of the shards."""
    assumed: tuple[str, ...] = field(default=())
    """What was assumed, in words."""

    @property
    def example_tokens(self) -> int:
        """Text and image tokens of a matched pair."""
        return self.text_tokens + self.task.image_tokens(self.regions)

    @property
    def views(self) -> list[Task]:
        """The task as each kind of step sees it: one, or one for each objective where a step has one."""
        task = self.task
        if isinstance(task, PretrainTask) and task.config.combine == "one":
            return [task.only(name) for name in task.objectives]
        return [task]

    def micro_batch(self, task: Task, tokens: int, slots: int | None = None) -> Batch:
        """A micro-batch of alike examples of about so many tokens, but at most so many slots of a global batch."""
        sample, block, step = self._sample(), self._block(), self._step
        groups: list[list[Example]] = []
        total = 0
        while slots is None or len(groups) < slots:
            number = len(groups)
            slot = Slot(step, number, dataset=0, epoch=0, block=0, group=0, example=number % len(block.sample_E))
            rng = draw(0, "plan", number)
            pairs = task.pairs(slot, block, rng)
            made = [task.example(slot, pair, sample, sample, 0, rng, step) for pair in pairs]
            total += sum(
                pair.tokens(len(example.token_ids_T), example.tokens - len(example.token_ids_T))
                for pair, example in zip(pairs, made, strict=True)
            )
            if groups and total > tokens:
                break
            groups.append(made)
        return with_hard_pairs(task, task.collate(groups, step))

    @property
    def _step(self) -> int:
        """A step in which all objectives have begun."""
        objectives = self.task.config.objectives.values() if isinstance(self.task, PretrainTask) else ()
        return max((objective.from_step for objective in objectives), default=0)

    def counted(self, task: Task, batch: Batch) -> int:
        """What a micro-batch of the task is for `batch.micro_tokens`."""
        slot = Slot(self._step, 0, dataset=0, epoch=0, block=0, group=0, example=0)
        pair, *_ = task.pairs(slot, self._block(), draw(0, "plan", 0))
        return pair.tokens(batch.text.packing.tokens, batch.image.packing.tokens)

    def _block(self) -> Block:
        """The tables of some samples with one text each, all alike."""
        count = np.arange(64, dtype=np.int32)
        return Block(
            shard_S=np.zeros_like(count),
            row_S=count,
            regions_S=np.full_like(count, self.regions),
            has_image_S=np.ones(len(count), np.bool_),
            sample_E=count,
            text_E=np.zeros_like(count),
            tokens_E=np.full_like(count, self.text_tokens),
        )

    def _sample(self) -> Sample:
        words = " ".join(["word"] * (self.text_tokens - 2))
        answers = self.config.task.answers[:1] if isinstance(self.config.task, VqaConfig) else ("yes",)
        return Sample(
            "sample",
            image=_picture() if self.task.wants_image else None,
            regions=_regions(self.config.model, self.regions) if self.task.wants_regions else None,
            captions=(words,),
            questions=(Question(words, tuple(answers)),),
            width=64,
            height=64,
        )


def with_hard_pairs(task: Task, batch: Batch) -> Batch:
    """A micro-batch with as many mismatched pairs as can come of it, where the task finds hard negatives."""
    if not isinstance(task, PretrainTask):
        return batch
    own = {type(task.objectives[name]): name for name in task.active(0)}
    matching = task.config.objectives.get(own.get(Matching, ""))
    if not (isinstance(matching, MatchingConfig) and matching.negatives == "hard" and Contrast in own):
        return batch
    pairs = [(row, (row + step) % len(batch)) for row in range(len(batch)) for step in range(1, 2 + MOST)]
    text = batch.text if batch.plain is None else batch.plain.text
    tokens = torch.split(torch.stack([text.ids_N, text.segments_N], dim=1), list(text.packing.lengths))
    texts = Texts([part.numpy() for part in tokens])
    found = rematched(
        batch, own[Contrast], range(len(batch)), pairs, texts, task.images.form, task.setting.model.pooler
    )
    targets = batch.targets[own[Matching]]
    told = replace(targets, survey={"rows": found.rows_P, "matched": found.matched_P})
    return replace(batch, targets={**batch.targets, own[Matching]: told}, rematched=found.pairs)


class _Words:
    """Stands in for the tokenizer: each word is a token."""

    def __init__(self, model: ModelConfig) -> None:
        assert isinstance(model.text.vocab_size, int)
        self.vocab_size, self.max_length = model.text.vocab_size, model.text.max_length
        self.cls_id, self.sep_id, self.mask_id = 0, 1, 2
        self.random_ids = np.arange(3, self.vocab_size)

    def encode(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        words = len(text.split()[: self.max_length - 2])
        ids_T = np.array([self.cls_id, *([3] * words), self.sep_id], np.int64)
        special_T = ids_T < 3
        return ids_T, special_T, np.where(special_T, -1, np.arange(-1, words + 1))


def ground_of(run: RunConfig, *, text_tokens: int | None, regions: int | None) -> Ground:
    """The ground of a run's plan.

    Args:
        text_tokens, regions: of an example, specials included; None for the data's means (20 and 36 without data).
    Raises:
        ConfigError, DataError: data are there but do not fit, or the task is one that cannot do without them.
    """
    if _missing(run):
        return _assumed(run, text_tokens or 20, regions or 36)
    assembled = assemble(run)
    means = _means(assembled.train)
    manifests = [dataset.index.manifest for dataset in assembled.train]
    return Ground(
        config=assembled.config,
        task=_task(assembled.config),
        text_tokens=text_tokens or means[0],
        regions=regions or means[1],
        examples=assembled.order.examples,
        shards=sum(len(manifest.shards) for manifest in manifests),
        bytes=sum(shard.bytes for manifest in manifests for shard in manifest.shards),
    )


def _missing(run: RunConfig) -> list[str]:
    """The datasets of the run that are not on this machine, and its tokenizer."""
    places = [entry.path for entry in run.data.train]
    lost = [place for place in places if not remote_url(place) and not Path(place).is_dir()]
    return [*lost, *([run.tokenizer] if run.tokenizer and not Path(run.tokenizer).is_dir() else [])]


def _assumed(run: RunConfig, text_tokens: int, regions: int) -> Ground:
    sizes = assumed_sizes(run.model)
    model = fill_sizes(run.model, sizes)
    task = _assumed_task(run.task)
    config = run.model_copy(update={"model": model, "task": task})
    made = _task(config)
    config = config.model_copy(update={"model": model.model_copy(update={"heads": made.heads})})
    shown = f"{text_tokens} text tokens" + (f" and {regions} regions" if made.wants_regions else "") + " per example"
    notes = (f"{_missing(run)[0]} is not there, so sizes are assumed ({sizes.vocab_size} words), and {shown}",)
    return Ground(config, made, text_tokens, regions, None, None, None, notes)


def _assumed_task(task: AnyTaskConfig) -> AnyTaskConfig:
    if isinstance(task, VqaConfig) and task.answers == "auto":
        return task.model_copy(update={"answers": tuple(f"answer {number}" for number in range(_ANSWERS))})
    if isinstance(task, ClassifyConfig) and task.labels == "auto":
        return task.model_copy(update={"labels": tuple(f"label {number}" for number in range(_LABELS))})
    if isinstance(task, PretrainConfig):
        return task.model_copy(
            update={"objectives": {name: _assumed_answers(own) for name, own in task.objectives.items()}}
        )
    return task


def _assumed_answers(own: AnyObjectiveConfig) -> AnyObjectiveConfig:
    if not isinstance(own, QuestionAnsweringConfig) or own.answers != "auto":
        return own
    return own.model_copy(update={"answers": tuple(f"answer {number}" for number in range(own.most or _ANSWERS))})


def _task(config: RunConfig) -> Task:
    text = cast(TextEncoder, _Words(config.model))
    return make_task(config.task, Setting(config.model, text, config.run.seed, config.data.without))


def _means(train: Sequence[Dataset]) -> tuple[int, int]:
    """Mean text tokens and regions of an example, over the first shards of each dataset."""
    tokens, regions = [], []
    for dataset in train:
        shards = range(min(_LOOKED_AT, len(dataset.index.manifest.shards)))
        block = open_block(dataset.index, shards, dataset.texts, dataset.lengths)
        tokens.append(block.tokens_E)
        regions.append(block.regions_S[block.sample_E])
    return max(3, round(np.concatenate(tokens).mean())), max(1, round(np.concatenate(regions).mean()))


def _regions(model: ModelConfig, count: int) -> Regions:
    source: Any = model.image.source
    images: Any = images_of(model.image)
    width = images.feature_width if hasattr(images, "feature_width") else images.regions.feature_width
    boxes_R4 = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    ones_R = np.ones(count, np.float32)
    return Regions(
        features_RD=np.zeros((count, width), np.float32),
        boxes_R4=boxes_R4,
        confidence_R=ones_R,
        class_probs_RC=None if source.classes is None else np.zeros((count, source.classes), np.float32),
        classes_R=None if source.classes is None else np.zeros(count, np.int64),
        attributes_R=None if source.attributes is None else np.zeros(count, np.int64),
        attribute_confidence_R=None if source.attributes is None else ones_R,
    )


def _picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return file.getvalue()
