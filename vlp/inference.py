"""What `vlp evaluate` does on each rank: open a trained model and a dataset, run, say the result."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from vlp.assemble import open_dataset
from vlp.data.dataset import Dataset
from vlp.distributed import world
from vlp.errors import ConfigError
from vlp.evaluate import Precision, evaluate
from vlp.failurepage import write_page
from vlp.freed import keep
from vlp.models.image import RegionSource
from vlp.objectives.region_class import RegionClass
from vlp.report import Report, write_results
from vlp.tasks.outcomes import Judgement
from vlp.tasks.pretrain import PretrainConfig
from vlp.tasks.registry import TASKS, AnyTaskConfig
from vlp.tasks.retrieval import RetrievalConfig
from vlp.tasks.saved import Trained, load_trained, read_saved
from vlp.tasks.task import Without


@dataclass(frozen=True)
class Asked:
    """What `vlp evaluate` is asked for beside model and data."""

    task: str | None = None
    """Another task than the model's own."""
    without: str | None = None
    """A modality that the examples shall lack."""
    folds: int | None = None
    """Of retrieval: parts within which is ranked."""
    limit: int | None = None
    """Examples (retrieval: images) that are judged."""
    out: Path | None = None
    """Where the report goes, as JSON."""
    results: Path | None = None
    """Where predictions go, as the VQA challenge's results file."""
    html: Path | None = None
    """Where the page of failures goes."""
    failures: int = 100
    """Failures on that page."""


def evaluate_model(model: Path, data: Path, asked: Asked, *, micro_tokens: int, precision: str) -> None:
    """Print (and write) the metrics of a model on a dataset."""
    chosen, without = _precision(precision), _without(asked.without)
    with world() as ranks:
        if ranks.device.type == "cpu":
            keep()
        trained = load_trained(model, task=_task(model, asked) if model.is_dir() else None, without=without)
        name: str = trained.task.config.name  # type: ignore[attr-defined]
        _check_results(asked, name)
        dataset = _open(trained, data)
        _check_classes(trained, dataset)
        judgement = evaluate(
            trained,
            dataset,
            ranks,
            micro_tokens=micro_tokens,
            limit=asked.limit,
            precision=chosen,
            progress=Progress(),
        )
        if ranks.is_main:
            facts: dict[str, Any] = {"model": str(model), "data": dataset.directory, "task": name}
            facts |= {"without": trained.task.setting.without, "precision": chosen}
            _tell(judgement, facts, asked, dataset)


def _tell(judgement: Judgement, facts: dict[str, Any], asked: Asked, dataset: Dataset) -> None:
    """Print the report, and write what is asked for."""
    title = f"{facts['task']} on {facts['data']}" + (f" without {facts['without']}" if facts["without"] else "")
    report = Report.of(judgement, facts, seed=0)
    report.show(title)
    if asked.out:
        report.write(asked.out)
    if asked.results:
        write_results(asked.results, judgement)
        print(f"{len(judgement.outcomes)} answers: {asked.results}", flush=True)
    if asked.html:
        shown = write_page(asked.html, judgement, dataset, title, asked.failures)
        print(f"{shown} failures: {asked.html}", flush=True)


def _check_results(asked: Asked, task: str) -> None:
    """Refuse files that the task cannot fill, before any work is done."""
    if asked.results and task not in ("vqa", "classify"):
        raise ConfigError(f"--results: '{task}' gives no answers to questions; only vqa and classify do")
    if asked.html and task == "pretrain":
        raise ConfigError("--html: 'pretrain' measures losses, so there are no failures to show; fine-tune for a task")
    if asked.folds and task != "retrieval":
        raise ConfigError(f"--folds: '{task}' ranks nothing; only retrieval is judged in folds")


class Progress:
    """Says how far a long evaluation is, on standard error: nothing in the first seconds, then every tenth."""

    def __init__(self, quiet_seconds: float = 10.0) -> None:
        self._said, self._quiet_until = 0, time.monotonic() + quiet_seconds

    def __call__(self, done: int, total: int) -> None:
        tenth = 10 * done // total
        if done == 1:
            self._said = 0
        if tenth > self._said:
            self._said = tenth
            if time.monotonic() > self._quiet_until:
                print(f"evaluated {done:,} of {total:,} batches", file=sys.stderr, flush=True)


def _task(model: Path, asked: Asked) -> AnyTaskConfig | None:
    """The config of the task that is asked for; None for the model's own."""
    own = read_saved(model).task
    if asked.task in (None, own.name):
        return _sized(own, asked) if isinstance(own, RetrievalConfig) else None
    if asked.task == "retrieval":
        return _sized(_zero_shot(model, own), asked)
    if asked.task in TASKS:
        raise ConfigError(
            f"--task {asked.task}: {model} was trained for '{own.name}' and has no heads for {asked.task}"
        )
    raise ConfigError(f"--task: '{asked.task}' is not known, it should be one of {', '.join(TASKS)}")


def _sized(config: RetrievalConfig, asked: Asked) -> RetrievalConfig:
    """Retrieval over as many images, in as many folds, as asked for."""
    change = {"judged_images": asked.limit, "folds": asked.folds}
    return config.model_copy(update={name: value for name, value in change.items() if value is not None})


def _zero_shot(model: Path, own: AnyTaskConfig) -> RetrievalConfig:
    """Retrieval with the matching head that pre-training left."""
    if isinstance(own, PretrainConfig):
        for name, objective in own.objectives.items():
            if objective.kind == "matching":
                return RetrievalConfig(head=name, texts=own.texts)
    raise ConfigError(
        f"--task retrieval: {model} was trained for '{own.name}' and has no matching head; it must be pre-trained with "
        "matching, or fine-tuned"
    )


def _without(text: str | None) -> Without | None:
    if text is not None and text not in get_args(Without):
        raise ConfigError(f"--without: '{text}' is not right, it should be image or text")
    return text  # type: ignore[return-value]


def _open(trained: Trained, data: Path | str) -> Dataset:
    """The dataset, checked against the model's image source."""
    dataset = open_dataset(data, trained.task.texts, trained.task.setting.text)
    source, found = trained.model.config.image.source, dataset.index.manifest.feature_width
    if isinstance(source, RegionSource) and trained.task.setting.without != "image" and source.width != found:
        raise ConfigError(
            f"the model reads regions of {source.width} numbers, but those of {dataset.directory} have "
            f"{found or 'no'} features"
        )
    return dataset


def _check_classes(trained: Trained, dataset: Dataset) -> None:
    """Refuse regions of other classes than the model guesses; of data without classes all else is judged."""
    guessed = [
        objective.classes for objective in trained.task.objectives.values() if isinstance(objective, RegionClass)
    ]
    found = dataset.index.manifest.class_count
    if guessed and found is not None and guessed[0] != found:
        raise ConfigError(
            f"the model guesses {guessed[0]} region classes, but those of {dataset.index.directory} have {found}"
        )


def _precision(text: str) -> Precision:
    if text not in get_args(Precision):
        raise ConfigError(f"--precision: '{text}' is not right, it should be fp32 or bf16")
    return text  # type: ignore[return-value]
