"""What the demo says at its end: a table on the terminal, and report.md with curves and examples."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.e2e.demo_pictures import draw_curves, draw_examples

RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class Row:
    """The results of one model on dev, as shares."""

    model: str
    right: float
    wrong: float
    matching: float
    vqa: float
    question_only: float
    image_to_text: tuple[float, ...]
    """Recall at 1, 5, 10."""
    text_to_image: tuple[float, ...]


def report(
    runs: Path, models: Sequence[str], dev: Path, bars: Mapping[str, float], seconds: Mapping[str, float]
) -> bool:
    """Gather the runs' evaluations, print the table, write report.md beside them; whether every bar is held."""
    rows = [read_row(runs, model) for model in models]
    missed = [sentence for row in rows for sentence in misses(row, bars)]
    names = [path.parent.name for path in sorted(runs.glob("*/metrics.jsonl"))]
    draw_curves({name: read_lines(runs / name / "metrics.jsonl") for name in names}, runs / "loss.png")
    draw_examples(runs / f"{models[0]}-vqa" / "model", dev, runs / "examples.png")
    write_markdown(runs / "report.md", rows, missed, bars, seconds, models[0])
    show(rows, missed, bars, sum(seconds.values()), runs / "report.md")
    return not missed


def read_row(runs: Path, model: str) -> Row:
    """The evaluations of a model's runs."""
    pretrained = read_metrics(runs / model)
    retrieval = read_metrics(runs / f"{model}-retrieval")
    return Row(
        model,
        pretrained["word_accuracy"],
        pretrained["word_accuracy_wrong_image"],
        pretrained["itm_accuracy"],
        read_metrics(runs / f"{model}-vqa")["vqa_accuracy"],
        read_metrics(runs / "question-only")["vqa_accuracy"],
        tuple(retrieval[f"image_to_text_recall@{k}"] for k in RECALLS),
        tuple(retrieval[f"text_to_image_recall@{k}"] for k in RECALLS),
    )


def read_metrics(run: Path) -> dict[str, float]:
    """The last evaluation of a run."""
    last = [line for line in read_lines(run / "metrics.jsonl") if "loss" not in line][-1]
    return {name.removeprefix("eval/"): value for name, value in last.items()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def misses(row: Row, bars: Mapping[str, float]) -> list[str]:
    """A sentence for each bar that a model misses."""
    checks = {
        f"colour words with the right image {percent(row.right)}, at least {percent(bars['right'])} wanted": (
            row.right >= bars["right"]
        ),
        f"colour words with a wrong image {percent(row.wrong)}, at most {percent(bars['wrong'])} wanted": (
            row.wrong <= bars["wrong"]
        ),
        f"questions {percent(row.vqa)}, at least {percent(bars['vqa'])} wanted": row.vqa >= bars["vqa"],
        f"questions {100 * (row.vqa - row.question_only):.1f} points above the question-only run, "
        f"at least {100 * bars['gap']:.0f} wanted": row.vqa - row.question_only >= bars["gap"],
    }
    return [f"{row.model}: {sentence}" for sentence, held in checks.items() if not held]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def cells(row: Row) -> list[str]:
    """A model's column, in the order of `measures`."""
    recalls = [
        " / ".join(f"{100 * share:.0f}" for share in shares) for shares in (row.image_to_text, row.text_to_image)
    ]
    shares = (row.right, row.wrong, row.matching, row.vqa, row.question_only)
    return [*map(percent, shares), *recalls]


def measures(bars: Mapping[str, float]) -> list[tuple[str, str]]:
    """What is measured, and what is wanted of it."""
    return [
        ("hidden colour word, right image", f"at least {bars['right']:.0%}"),
        ("hidden colour word, wrong image", f"at most {bars['wrong']:.0%}"),
        ("image-text matching", ""),
        ("VQA", f"at least {bars['vqa']:.0%}"),
        ("VQA, question only", f"{100 * bars['gap']:.0f} points below"),
        ("image to text, recall@1/5/10", ""),
        ("text to image, recall@1/5/10", ""),
    ]


def show(rows: Sequence[Row], missed: Sequence[str], bars: Mapping[str, float], seconds: float, path: Path) -> None:
    """Print the table."""
    models = [row.model for row in rows]
    table = Table("on dev", *models, "wanted", title="vlp demo: dev scenes, none with a layout seen in training")
    for (measure, wanted), *values in zip(measures(bars), *map(cells, rows), strict=True):
        table.add_row(measure, *values, wanted)
    console = Console()
    console.print()
    console.print(table)
    for sentence in missed:
        console.print(f"missed: {sentence}", style="red", highlight=False, soft_wrap=True)
    console.print(f"{seconds / 60:.1f} minutes; curves and examples: {path}", highlight=False, soft_wrap=True)


def write_markdown(
    path: Path,
    rows: Sequence[Row],
    missed: Sequence[str],
    bars: Mapping[str, float],
    seconds: Mapping[str, float],
    answered_by: str,
) -> None:
    """Write report.md; pictures are named relative to it."""
    lines = ["# vlp demo", "", "On dev scenes, none with a layout seen in training.", ""]
    lines += [_line(["", *(row.model for row in rows), "wanted"]), "|" + " --- |" * (len(rows) + 2)]
    for (measure, wanted), *values in zip(measures(bars), *map(cells, rows), strict=True):
        lines.append(_line([measure, *values, wanted]))
    lines += ["", *(f"Missed: {sentence}." for sentence in missed), *([""] if missed else [])]
    lines += ["Recall is over 50 images and all their captions. Short captions fit several scenes.", ""]
    lines += ["## Losses", "", "![losses](loss.png)", ""]
    lines += ["## Examples", "", f"The first dev scenes, a question each, answered by {answered_by}.", ""]
    lines += ["![examples](examples.png)", "", "## Commands", ""]
    total = sum(seconds.values())
    lines += [f"{total / 60:.1f} minutes on {os.cpu_count()} CPU cores.", "", "| seconds | command |", "| ---: | --- |"]
    lines += [f"| {took:.0f} | `{command}` |" for command, took in seconds.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
