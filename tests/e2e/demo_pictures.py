"""The demo's pictures: loss curves, and dev photos with a question, its answer and the model's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 4
EXAMPLES = 8
SMOOTHED = 25
"""Most steps of the running mean over a curve (a tenth of a short one); a step's loss is noisy."""


@dataclass(frozen=True)
class Answered:
    """A question of a dev photo, and what a model said."""

    photo: bytes
    question: str
    answer: str
    prediction: str


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """One panel per run, one curve per objective, from the lines of its metrics.jsonl."""
    plt = _pyplot()
    rows = -(-len(runs) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(4 * COLUMNS, 3 * rows), squeeze=False)
    for axis in axes.flat[len(runs) :]:
        axis.axis("off")
    for axis, (name, lines) in zip(axes.flat, runs.items(), strict=False):
        objectives = sorted({key for line in lines for key in line if key.startswith("loss/")})
        for objective in objectives:
            points = [(line["step"], line[objective]) for line in lines if line.get(objective) is not None]
            steps, losses = zip(*points, strict=True)
            axis.plot(steps[-len(smooth(losses)) :], smooth(losses), label=objective.removeprefix("loss/"))
        axis.set(title=name, xlabel="step", ylabel="loss", ylim=(0, None))
        axis.legend()
    _save(plt, figure, path)


def smooth(values: Sequence[float]) -> Any:
    """The running mean, shorter than `values` by its window."""
    window = min(SMOOTHED, max(1, len(values) // 10))
    return np.convolve(values, np.ones(window) / window, mode="valid")


def draw_examples(model: Path, dev: Path, path: Path) -> None:
    """The first dev photos, each with another of its questions, green where the model is right."""
    plt = _pyplot()
    figure, axes = plt.subplots(EXAMPLES // COLUMNS, COLUMNS, figsize=(4 * COLUMNS, 4.6 * EXAMPLES // COLUMNS))
    for axis, shown in zip(axes.flat, answer_examples(model, dev), strict=True):
        axis.imshow(plt.imread(io.BytesIO(shown.photo), format="jpg"))
        axis.axis("off")
        right = shown.answer == shown.prediction
        said = f"{shown.prediction}" if right else f"{shown.prediction} (it is: {shown.answer})"
        axis.set_title(f"{shown.question}\n{said}", color="tab:green" if right else "tab:red", fontsize=10, wrap=True)
    _save(plt, figure, path)


def answer_examples(model: Path, dev: Path) -> list[Answered]:
    """The n-th question of the n-th photo, for the first photos, answered by a fine-tuned model."""
    from vlp.assemble import open_dataset
    from vlp.distributed import world
    from vlp.evaluate import Inference
    from vlp.tasks.judge import Judge
    from vlp.tasks.saved import load_trained
    from vlp.tasks.vqa import VqaTask

    trained = load_trained(model)
    assert isinstance(trained.task, VqaTask)
    dataset = open_dataset(dev, trained.task.texts, trained.task.setting.text)
    samples = [dataset.read(0, row, image=True, regions=False, texts=True) for row in range(EXAMPLES)]
    questions = sum(len(sample.questions) for sample in samples)
    with world() as ranks:
        judge = Judge(Inference(trained.module(), ranks), dataset, 8192, 0, questions)
        said = {outcome.id: outcome.said for outcome in trained.task.judged(judge).outcomes}
    result = []
    for number, sample in enumerate(samples):
        question = sample.questions[number % len(sample.questions)]
        result.append(Answered(sample.image or b"", question.text, question.answers[0], said[question.id]))
    return result


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")  # draws into files; needs no screen
    from matplotlib import pyplot

    return pyplot


def _save(plt: Any, figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
