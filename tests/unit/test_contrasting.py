"""Recall by the vectors of contrast, on a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.task_making import dataset, model_config, sample, text_encoder
from vlp.data.dataset import Dataset
from vlp.distributed import World, world
from vlp.evaluate import Inference
from vlp.models.model import ModelConfig, Network
from vlp.tasks import contrasting
from vlp.tasks.judge import Judge
from vlp.tasks.module import TaskModule
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.tasks.task import Setting

TEXTS = (("red", "red circle"), ("blue",), ("green", "left of", "the circle is left"), ("square",))
TOWERS = [
    {"stream": "text", "sublayers": ["self", "ffn"]},
    {"stream": "image", "sublayers": ["self", "ffn"]},
    {"stream": "both", "sublayers": ["cross", "self", "ffn"], "share": ["cross"]},
]


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Dataset]:
    with world():
        yield dataset(tmp_path, [sample(number, *texts, regions=2 + number) for number, texts in enumerate(TEXTS)])


def made() -> tuple[PretrainTask, TaskModule]:
    model = ModelConfig.parse({**model_config().plain(), "encoder": TOWERS, "init_std": 0.5})
    objectives = {
        "mlm": {"kind": "masked_language"},
        "itc": {"kind": "contrast", "width": 6, "momentum": {}},
        "itm": {"kind": "matching", "negatives": "hard"},
    }
    task = PretrainTask(PretrainConfig.parse({"objectives": objectives}), Setting(model, text_encoder(), 0))
    torch.manual_seed(0)
    return task, TaskModule(Network(model.model_copy(update={"heads": task.heads})).eval(), task.objectives)


def judged(data: Dataset, tokens: int) -> dict[str, float]:
    task, module = made()
    return task.evaluate(Judge(Inference(module, World(0, 1, 0, torch.device("cpu"))), data, tokens, 0))


def test_recall_by_hand(data: Dataset) -> None:
    task, module = made()
    texts = [text for group in TEXTS for text in group]
    owner = [image for image, group in enumerate(TEXTS) for _ in group]
    pairs = [(text, image) for text in range(7) for image in range(4)]
    examples = [task.bare_example(sample(image, regions=2 + image), texts[text]) for text, image in pairs]
    batch = task.collate([[example] for example in examples], 0)
    batch.plain = None
    batch.targets["itc"].positions_K = torch.arange(len(pairs))
    with torch.no_grad():
        both = module.vectors(batch)
    scores = (both[:, :6] * both[:, 6:12]).sum(1).view(7, 4)
    found = judged(data, 60)
    right = [bool(scores[text].argmax() == owner[text]) for text in range(7)]
    assert found["itc_text_to_image_recall@1"] == pytest.approx(sum(right) / 7)
    best = [owner[int(scores[:, image].argmax())] == image for image in range(4)]
    assert found["itc_image_to_text_recall@1"] == pytest.approx(sum(best) / 4)
    assert found["itc_text_to_image_recall@5"] == found["itc_image_to_text_recall@10"] == 1
    assert found["itc_images"] == 4
    odds = [[scores[t, i] for i in range(4)] for t in range(7)]
    loss = 0.0
    for text, row in enumerate(odds):
        others = [scores[other, owner[text]] for other in range(7) if other == text or owner[other] != owner[text]]
        keys = [row[owner[other]] for other in range(7) if other == text or owner[other] != owner[text]]
        own = row[owner[text]]
        loss += float(torch.stack(keys).logsumexp(0) + torch.stack(others).logsumexp(0) - 2 * own) / 2
    assert found["loss/itc"] == pytest.approx(loss / 7, rel=1e-4)
    assert found["loss/itm"] > 0


def test_batches_change_nothing_and_the_first_images_are_searched(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = judged(data, 1000), judged(data, 20)
    for name in whole:
        assert parts[name] == pytest.approx(whole[name], rel=1e-4), name
    monkeypatch.setattr(contrasting, "IMAGES", 2)
    few = judged(data, 60)
    assert few["itc_images"] == 2
    assert few["itc_text_to_image_recall@5"] == 1
