"""Small models, tokenizers, blocks and samples for tests of objectives and tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.tokenizer import save, train
from data_tools.writer import ShardWriter
from tests.unit.shard_making import CLASSES, WIDTH, some_regions
from vlp.data.batch import ImageForm, collate
from vlp.data.dataset import Dataset
from vlp.data.index import Block, Texts, build_index, open_index
from vlp.data.lengths import token_lengths
from vlp.data.text import TextEncoder
from vlp.distributed import World
from vlp.models.model import ModelConfig
from vlp.objectives.objective import Facts, Hidden
from vlp.objectives.regions import RegionHidingConfig, hide_regions
from vlp.seeds import Draw, Draws
from vlp.tasks.judge import Judge
from vlp.tasks.pretrain import PretrainTask
from vlp.tasks.task import Setting
from vlp.types import Batch, Example, Question, RegionBatch, RegionInput, Sample, Slot

WORDS = ("red", "blue", "green", "circle", "square", "left", "of", "what", "colour", "is", "the")
SLOT = Slot(step=0, index=0, dataset=0, epoch=0, block=0, group=0, example=0)


@cache
def text_encoder(max_length: int = 16) -> TextEncoder:
    """A tokenizer whose vocabulary holds each of `WORDS` as one token."""
    with TemporaryDirectory() as folder:
        save(train([" ".join(WORDS)] * 9, 200, lowercase=True), Path(folder))
        return TextEncoder(folder, max_length)


def model_config(source: dict[str, Any] | None = None) -> ModelConfig:
    """A single-stream model of width 8 over the regions of `shard_making`, or over another source."""
    regions = {"kind": "regions", "width": WIDTH, "classes": CLASSES, "max_regions": 10}
    return ModelConfig.parse(
        {
            "text": {
                "vocab_size": text_encoder().vocab_size,
                "max_length": 16,
                "layer": {"width": 8, "heads": 2, "ffn": 16},
            },
            "image": {"source": source or regions, "parts": [{"kind": "feature"}]},
            "encoder": [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}],
        }
    )


PIXELS = {"kind": "pixels", "backbone": "test_convnext", "size": 32}


def facts(source: dict[str, Any] | None = None) -> Facts:
    return Facts(model_config(source), text_encoder())


def setting(seed: int = 0, **more: Any) -> Setting:
    return Setting(model_config(), text_encoder(), seed, **more)


def region_input(count: int, number: int = 0) -> RegionInput:
    regions = some_regions(count, number)
    assert regions.confidence_R is not None
    assert regions.class_probs_RC is not None
    return RegionInput(
        np.asarray(regions.features_RD, np.float32),
        np.asarray(regions.boxes_R4, np.float32),
        np.asarray(regions.confidence_R, np.float32),
        np.asarray(regions.class_probs_RC, np.float32),
    )


def example(words: int = 6, regions: int = 4, matched: bool = True) -> Example:
    """[CLS], words with ids from 10 on, [SEP]; the vocabulary knows them."""
    ids = np.array([text_encoder().cls_id, *range(10, 10 + words), text_encoder().sep_id], np.int64)
    special_T = np.zeros(words + 2, bool)
    special_T[[0, -1]] = True
    return Example("x", ids, special_T, np.arange(words + 2) - 1, region_input(regions), matched)


def hidden(of: Example | None = None) -> Hidden:
    return Hidden(of or example())


def hide(made: Example, config: RegionHidingConfig, rng: Draw, lent: np.ndarray | None = None) -> Hidden:
    """An example of which regions are hidden."""
    hidden = Hidden(made, lent_KD=lent)
    hide_regions([hidden], config, Draws([rng.key]))
    return hidden


def shown_features(made: Example) -> np.ndarray:
    """The features of an example's regions as the model sees them, [R, D]."""
    image = collate([replace(made, targets={})], ImageForm("regions", WIDTH), {}).to("cpu").image
    assert isinstance(image, RegionBatch)
    return image.features_MD.numpy()


def ask(task: PretrainTask, made: Example, step: int) -> Example:
    """Hide something of an example and ask for it; the example then holds its targets."""
    made.targets |= {name: asked.one() for name, asked in task.ask([made], step).items()}
    return made


def sample(number: int, *captions: str, questions: Sequence[Question] = (), regions: int = 3) -> Sample:
    return Sample(f"s{number}", regions=some_regions(regions, number), captions=captions, questions=tuple(questions))


def block(*texts: int, regions: int = 3) -> Block:
    """A block of one shard: sample i has `texts[i]` texts."""
    samples = len(texts)
    sample_E = np.repeat(np.arange(samples), texts).astype(np.int32)
    text_E = np.concatenate([np.arange(count) for count in texts]).astype(np.int32)
    return Block(
        shard_S=np.zeros(samples, np.int32),
        row_S=np.arange(samples, dtype=np.int32),
        regions_S=np.full(samples, regions, np.int32),
        has_image_S=np.ones(samples, bool),
        sample_E=sample_E,
        text_E=text_E,
        tokens_E=np.full(len(sample_E), 5, np.int32),
    )


def within_3_sigma(hits: int, trials: int, probability: float) -> bool:
    """Whether so many hits are what chance gives in 99.7 of 100 cases."""
    return abs(hits - trials * probability) <= 3 * (trials * probability * (1 - probability)) ** 0.5


def dataset(folder: Path, samples: Sequence[Sample], texts: Texts = "captions", per_shard: int = 3) -> Dataset:
    """Samples as an indexed data directory, opened."""
    with ShardWriter(folder, per_shard) as writer:
        for each in samples:
            writer.write(each.key, each.image, "jpg", each.regions, list(each.captions), list(each.questions))
    build_index(folder)
    index, encoder = open_index(folder), text_encoder()
    return Dataset(index, texts, token_lengths(index, encoder.count, encoder.fingerprint, encoder.max_length))


class Oracle:
    """Stands in for a model: `scores(batch, name)` is whatever a test wants; keeps the batches it has seen."""

    def __init__(self, answer: Callable[[Batch], Tensor]) -> None:
        self.world = World(0, 1, 0, torch.device("cpu"))
        self.answer = answer
        self.batches: list[Batch] = []

    def to_device(self, batch: Batch) -> Batch:
        return batch

    def inference(self, call: Callable[[Any], Any]) -> Any:
        return call(self)

    def scores(self, batch: Batch, name: str) -> Tensor:
        assert name in batch.targets
        self.batches.append(batch)
        return self.answer(batch)


def judge(oracle: Oracle, data: Dataset, micro_tokens: int = 60, limit: int | None = None) -> Judge:
    return Judge(oracle, data, micro_tokens, 0, limit)


def texts_of(batch: Batch) -> list[str]:
    """The words of each example of a batch."""
    parts = batch.text.ids_N.split(list(batch.text.packing.lengths))
    return [" ".join(text_encoder().tokens(part[1:-1].tolist())) for part in parts]


def images_of(batch: Batch) -> list[float]:
    """The first number of each example's first region, by which a test knows the image."""
    assert isinstance(batch.image, RegionBatch)
    return batch.image.features_MD[batch.image.packing.starts_B1[:-1].long(), 0].tolist()
