"""Classification: labels from the shards, examples, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.task_making import SLOT, dataset, model_config, sample, setting
from vlp.data.dataset import Dataset
from vlp.distributed import World, world
from vlp.errors import DataError
from vlp.evaluate import Inference
from vlp.models.model import Network
from vlp.objectives.label import Label, LabelConfig
from vlp.seeds import draw
from vlp.tasks.classify import LABEL, ClassifyConfig, ClassifyTask, labels_of
from vlp.tasks.judge import Judge
from vlp.tasks.module import TaskModule
from vlp.types import Pair, Question, Targets


def task(*labels: str) -> ClassifyTask:
    return ClassifyTask(ClassifyConfig.parse({"labels": list(labels)}), setting())


def shown(label: str | None, id: str = "") -> Question:
    return Question("what is it", () if label is None else (label,), id)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Dataset]:
    samples = [
        sample(0, questions=[shown("Warm", "q0"), shown("cold", "q1")]),
        sample(1, questions=[shown("cold", "q2"), shown(None, "q3")]),
        sample(2, questions=[shown("Warm", "q4")]),
    ]
    with world():
        yield dataset(tmp_path, samples, "questions")


def test_labels_are_those_of_the_shards(data: Dataset, tmp_path: Path) -> None:
    assert labels_of([data, data]) == ("Warm", "cold")
    one = dataset(tmp_path / "one", [sample(0, questions=[shown("cold"), shown(None)])], "questions")
    with pytest.raises(DataError, match=r"data\.train: has 1 labels where a choice needs two"):
        labels_of([one])


def test_only_known_labels_teach() -> None:
    made = task("Warm", "cold")
    for label, wanted in (("cold", 1), ("Warm", 0), ("warm", None), (None, None)):
        text = sample(0, questions=[shown(label)])
        example = made.example(SLOT, Pair(0, 0), sample(0), text, 0, draw(0, "t"), 0)
        found = example.targets[LABEL].values["label"].tolist() if LABEL in example.targets else [None]
        assert found == [wanted]
    assert made.collate([], 0).targets[LABEL].count == 0


def always(number: int, made: ClassifyTask) -> TaskModule:
    """A model that says the same label of everything."""
    module = TaskModule(Network(model_config().model_copy(update={"heads": made.heads})), made.objectives)
    output: nn.Linear = module.model.heads[LABEL].output  # type: ignore[assignment,union-attr]
    with torch.no_grad():
        output.weight.zero_()
        output.bias.copy_(torch.eye(len(output.bias))[number])
    return module


def judged(made: ClassifyTask, number: int, data: Dataset) -> Any:
    return made.judged(Judge(Inference(always(number, made), World(0, 1, 0, torch.device("cpu"))), data, 30, 0))


def test_metrics_and_outcomes(data: Dataset) -> None:
    found = judged(task("Warm", "cold"), 1, data)
    # Two of four are cold; F1 of cold is 2 * 2 / (4 + 2), that of Warm 0.
    assert found.metrics == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "examples": 4}
    assert [(each.id, each.said, each.wanted) for each in found.outcomes] == [
        ("q0", "cold", ("Warm",)),
        ("q1", "cold", ("cold",)),
        ("q2", "cold", ("cold",)),
        ("q3", "cold", ()),
        ("q4", "cold", ("Warm",)),
    ]
    assert found.notes == ()


def test_labels_that_training_never_saw(data: Dataset) -> None:
    found = judged(task("cold", "hot"), 0, data)
    assert found.metrics["accuracy"] == 0.5
    assert found.notes == ("training never saw the label 'Warm', so it is never said",)


def test_pairs_without_labels_have_no_score(tmp_path: Path) -> None:
    with world():
        secret = dataset(tmp_path, [sample(0, questions=[shown(None)])], "questions")
        found = judged(task("a", "b"), 1, secret)
    assert found.metrics == {}
    assert [each.said for each in found.outcomes] == ["b"]
    assert found.notes == ("the pairs have no labels, so there is no score",)


def test_the_loss_is_cross_entropy_with_smoothing() -> None:
    scores, labels = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1])
    targets = Targets(torch.arange(4), {"label": labels}, 4.0)
    logs = scores.log_softmax(-1)
    plain, metrics = Label(LABEL, LabelConfig(), 3).loss(scores, targets)
    own = -logs[torch.arange(4), labels]
    torch.testing.assert_close(plain, own.sum())
    smooth, _ = Label(LABEL, LabelConfig(smoothing=0.3), 3).loss(scores, targets)
    torch.testing.assert_close(smooth, (0.7 * own - 0.3 * logs.mean(-1)).sum())
    assert metrics["label_accuracy"][1] == 4
