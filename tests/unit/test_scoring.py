"""Scoring all pairs: halves against whole pairs, a dual encoder against its own vectors, shortlist and rerank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.task_making import dataset, model_config, sample, text_encoder
from vlp.data.dataset import Dataset
from vlp.distributed import World, world
from vlp.errors import ConfigError, DataError
from vlp.evaluate import Inference
from vlp.models.halves import image_met, separable
from vlp.models.model import ModelConfig, Network
from vlp.tasks.candidates import find_candidates
from vlp.tasks.judge import Judge
from vlp.tasks.module import TaskModule
from vlp.tasks.retrieval import CONTRAST, RetrievalConfig, RetrievalTask
from vlp.tasks.scoring import Scorer
from vlp.tasks.task import Setting
from vlp.types import Question

TEXTS = (("red", "red circle"), ("blue",), ("green", "left of", "the circle is left"), ("square",))
TOWERS: list[dict[str, Any]] = [
    {"stream": "text", "sublayers": ["self", "ffn"]},
    {"stream": "image", "sublayers": ["self", "ffn"]},
    {"stream": "both", "sublayers": ["cross", "self", "ffn"], "share": ["cross"]},
]
JOINT = [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}]


def made(encoder: list[dict[str, Any]], config: dict[str, Any], **model: Any) -> tuple[RetrievalTask, TaskModule]:
    values = {**model_config().plain(), "encoder": encoder, "init_std": 0.5, **model}
    setting = Setting(ModelConfig.parse(values), text_encoder(), 0)
    task = RetrievalTask(RetrievalConfig.parse(config), setting)
    torch.manual_seed(0)
    network = Network(setting.model.model_copy(update={"heads": task.heads})).eval()
    return task, TaskModule(network, task.objectives)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Dataset]:
    with world():
        yield dataset(tmp_path, [sample(number, *texts, regions=2 + number) for number, texts in enumerate(TEXTS)])


def scorer(task: RetrievalTask, module: TaskModule, data: Dataset, *, apart: bool, tokens: int = 40) -> Scorer:
    runner = Inference(module, World(0, 1, 0, torch.device("cpu")))
    judge = Judge(runner, data, tokens, 0)
    return Scorer(task, judge, find_candidates(task, data, 100), apart=apart)


EVERYTHING = [np.arange(7)] * 4


@pytest.mark.parametrize("encoder", [TOWERS, JOINT], ids=["towers", "joint"])
@pytest.mark.parametrize("frame", [{}, {"cls": True, "end": True}], ids=["plain", "framed"])
def test_halves_score_as_whole_pairs_do(encoder: list[dict[str, Any]], frame: dict[str, Any], data: Dataset) -> None:
    image = {**model_config().plain()["image"], **frame}
    task, module = made(encoder, {}, image=image)
    assert task.ranking is not None
    halves = scorer(task, module, data, apart=True).matches(task.ranking, EVERYTHING)
    whole = scorer(task, module, data, apart=False).matches(task.ranking, EVERYTHING)
    assert halves is not None
    assert whole is not None
    assert np.std(whole) > 1e-3
    np.testing.assert_allclose(halves, whole, atol=2e-5)


def test_each_half_runs_once(data: Dataset) -> None:
    task, module = made(TOWERS, {})
    assert task.ranking is not None
    rows = {"text": 0, "image": 0}
    for number, stream in enumerate(rows):
        block = module.model.encoder.blocks[number]

        def count(_: Any, inputs: Any, stream: str = stream) -> None:
            rows[stream] += len(inputs[0].apart()[stream])

        block.register_forward_pre_hook(count)
    scorer(task, module, data, apart=True).matches(task.ranking, EVERYTHING)
    texts = text_encoder().count([text for texts in TEXTS for text in texts])
    assert rows["text"] == sum(texts) + 2 * len(TEXTS)  # each image goes with an empty text, [CLS] [SEP]
    assert rows["image"] == 2 + 3 + 4 + 5


def test_only_the_pairs_that_are_asked_for(data: Dataset) -> None:
    task, module = made(JOINT, {})
    assert task.ranking is not None
    some = [np.array([0, 3]), np.array([], np.int64), np.array([6]), np.array([1, 2, 5])]
    found = scorer(task, module, data, apart=True).matches(task.ranking, some)
    whole = scorer(task, module, data, apart=True).matches(task.ranking, EVERYTHING)
    assert found is not None
    assert whole is not None
    for image, texts in enumerate(some):
        assert np.flatnonzero(~np.isnan(found[image])).tolist() == texts.tolist()
        np.testing.assert_allclose(found[image, texts], whole[image, texts], atol=2e-5)


def test_models_whose_streams_read_each_other_cannot_be_taken_apart() -> None:
    config = model_config()
    assert separable(config)
    image = {
        **config.plain()["image"],
        "parts": [{"kind": "feature"}, {"kind": "position", "at": "after_text", "table": "text"}],
    }
    text = config.plain()["text"]
    parts = [{**part, "rows": 64} if part["kind"] == "position" else part for part in text["parts"]]
    reading = ModelConfig.parse({**config.plain(), "image": image, "text": {**text, "parts": parts}})
    assert not separable(reading)
    task = RetrievalTask(RetrievalConfig(), Setting(reading, text_encoder(), 0))
    assert not task.apart
    with pytest.raises(ConfigError, match=r"task\.contrast: this model's text reads the image"):
        RetrievalTask(RetrievalConfig.parse({"contrast": {}}), Setting(reading, text_encoder(), 0))


def test_the_part_of_an_image_s_way_that_lies_behind_a_text() -> None:
    def share(encoder: list[dict[str, Any]]) -> float:
        return image_met(ModelConfig.parse({**model_config().plain(), "encoder": encoder}))

    assert share(JOINT) == 1
    assert share(TOWERS) == 3 / 5
    text_looks = {"stream": "text", "repeat": 2, "sublayers": ["self", "cross", "ffn"]}
    assert share([{"stream": "image", "repeat": 3, "sublayers": ["self", "ffn"]}, text_looks]) == 2 / 8
    assert share([{"stream": "image", "sublayers": ["self", "ffn"]}]) == 0


def test_a_dual_encoder_compares_the_vectors_of_its_head(data: Dataset) -> None:
    task, module = made(TOWERS, {"ranking": None, "contrast": {"width": 6, "temperature": 0.5}})
    assert task.contrast is not None
    found = scorer(task, module, data, apart=True).similarities(task.contrast)
    assert found.shape == (4, 7)
    assert np.abs(found).max() <= 1 / 0.5 + 1e-5
    # By hand: whole pairs through the model, then the taps of each.
    texts = [text for texts in TEXTS for text in texts]
    for i in range(len(TEXTS)):
        batch = task.collate([[task.bare_example(sample(i, regions=2 + i), text)] for text in texts], 0)
        batch.targets[CONTRAST].positions_K = torch.arange(len(texts))
        with torch.no_grad():
            vectors = module.scores(batch, CONTRAST)
        np.testing.assert_allclose(found[i], (vectors[:, :6] * vectors[:, 6:12]).sum(1).numpy(), atol=1e-5)


def test_a_shortlist_of_everything_is_the_cross_encoder(data: Dataset) -> None:
    contrast = {"contrast": {"width": 6}}
    task, module = made(TOWERS, {**contrast, "shortlist": 100})
    runner = Inference(module, World(0, 1, 0, torch.device("cpu")))
    both = task.evaluate(Judge(runner, data, 60, 0))
    alone, _ = made(TOWERS, {})
    assert both == alone.evaluate(Judge(runner, data, 60, 0))
    short, _ = made(TOWERS, {**contrast, "shortlist": 1})
    dual, _ = made(TOWERS, {**contrast, "ranking": None})
    first = {name for name in both if name.endswith("recall@1")}
    judge = Judge(runner, data, 60, 0)
    assert {n: short.evaluate(judge)[n] for n in first} == {n: dual.evaluate(judge)[n] for n in first}


def test_folds_rank_within_themselves(data: Dataset) -> None:
    task, module = made(TOWERS, {"folds": 2})
    runner = Inference(module, World(0, 1, 0, torch.device("cpu")))
    found = task.evaluate(Judge(runner, data, 60, 0))
    assert (found["images"], found["texts"]) == (4, 7)
    assert found["text_to_image_mean_rank"] <= 2
    assert found["text_to_image_recall@5"] == 1
    with pytest.raises(DataError, match=r"4 images cannot be judged in 5 folds; lower task\.folds"):
        made(TOWERS, {"folds": 5})[0].evaluate(Judge(runner, data, 60, 0))


def test_an_image_without_a_caption_is_left_out_and_said(tmp_path: Path) -> None:
    bare = sample(9, questions=[Question("what is it", ("red",))])
    with world():
        data = dataset(tmp_path, [sample(0, "red"), bare, sample(1, "blue")])
        task, module = made(JOINT, {})
        runner = Inference(module, World(0, 1, 0, torch.device("cpu")))
        found = task.judged(Judge(runner, data, 60, 0))
    assert found.metrics["images"] == 2
    assert found.notes == ("1 images without captions were left out: nothing belongs to them",)
    assert [each.place.rpartition("/")[2] for each in found.outcomes] == ["s0", "s1"] * 2
