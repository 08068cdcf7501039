"""What `vlp evaluate` and `vlp extract` do on each rank: open a trained model and a dataset, run, say the result."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from vlp.assemble import open_dataset
from vlp.data.dataset import Dataset
from vlp.distributed import world
from vlp.errors import ConfigError
from vlp.evaluate import Precision, evaluate, write_report
from vlp.extract import extract, parse_what
from vlp.models.image import RegionSource
from vlp.objectives.region_class import RegionClass
from vlp.tasks.pretrain import PretrainConfig
from vlp.tasks.registry import AnyTaskConfig
from vlp.tasks.retrieval import RetrievalConfig
from vlp.tasks.saved import Trained, load_trained, read_saved


def evaluate_model(
    model: Path, data: Path, task: str | None, *, out: Path | None, limit: int | None, micro_tokens: int, precision: str
) -> None:
    """Print (and write) the metrics of a model on a dataset."""
    chosen = _precision(precision)
    with world() as ranks:
        trained = load_trained(model, task=_task(model, task, limit) if model.is_dir() else None)
        dataset = _open(trained, data)
        _check_classes(trained, dataset)
        metrics = evaluate(trained, dataset, ranks, micro_tokens=micro_tokens, limit=limit, precision=chosen)
        if ranks.is_main:
            name = trained.task.config.name  # type: ignore[attr-defined]
            _show(f"{name} on {data}", metrics)
            if out:
                write_report(out, metrics, {"model": str(model), "data": str(data), "task": name})


def extract_features(model: Path, data: Path, out: Path, what: str, *, micro_tokens: int, precision: str) -> None:
    """Write features and say how many."""
    chosen, wanted = _precision(precision), parse_what(what)
    with world() as ranks:
        trained = load_trained(model)
        dataset = _open(trained, data)
        rows, lost = extract(trained, dataset, out, wanted, ranks, micro_tokens=micro_tokens, precision=chosen)
        if ranks.is_main:
            print(f"{rows} examples: {', '.join(wanted)} in {out}", flush=True)
            if lost:
                print(f"{lost} examples cannot be read and were left out: see {out / 'manifest.json'}", flush=True)


def _task(model: Path, name: str | None, limit: int | None) -> AnyTaskConfig | None:
    """The config of the task that is asked for; None for the model's own."""
    own = read_saved(model).task
    if name in (None, own.name):
        if isinstance(own, RetrievalConfig) and limit is not None:
            return own.model_copy(update={"judged_images": limit})
        return None
    if name == "retrieval":
        return _zero_shot(own, limit)
    if name in ("pretrain", "vqa"):
        raise ConfigError(f"--task {name}: {model} was trained for '{own.name}' and has no heads for {name}")
    raise ConfigError(f"--task: '{name}' is not known, it should be pretrain, vqa or retrieval")


def _zero_shot(own: AnyTaskConfig, limit: int | None) -> RetrievalConfig:
    """Retrieval with the matching head that pre-training left."""
    if isinstance(own, PretrainConfig):
        for name, objective in own.objectives.items():
            if objective.kind == "matching":
                return RetrievalConfig(head=name, texts=own.texts, judged_images=limit or 1000)
    raise ConfigError(
        "--task retrieval: the model has no matching head; it must be pre-trained with matching, or fine-tuned"
    )


def _open(trained: Trained, data: Path) -> Dataset:
    """The dataset, checked against the model's image source."""
    dataset = open_dataset(data, trained.task.texts, trained.task.setting.text)
    source, found = trained.model.config.image.source, dataset.index.manifest.feature_width
    if isinstance(source, RegionSource) and trained.saved.without != "image" and source.width != found:
        raise ConfigError(
            f"the model reads regions of {source.width} numbers, but those of {data} have {found or 'no'} features"
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


def _show(title: str, metrics: dict[str, float]) -> None:
    table = Table("metric", "value", title=title, title_justify="left")
    for name, value in metrics.items():
        table.add_row(name, f"{value:,.0f}" if name in ("questions", "images", "texts") else f"{value:.4f}")
    Console().print(table)
