"""`vlp-data shapes`: render the small world into shards, for a first run and for tests of the whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlp.errors import ConfigError

if TYPE_CHECKING:
    from data_tools.world.samples import WorldSample
    from data_tools.world.scene import Split


def shapes(
    out: Annotated[Path, typer.Option(help="Directory for the data; OUT/train and OUT/dev are written.")],
    samples: Annotated[int, typer.Option(min=2, help="Scenes, train and dev together.")],
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another world.")] = 0,
    dev_share: Annotated[float, typer.Option(help="Share of the scenes, and of the layouts, that dev gets.")] = 0.1,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Scenes in a tar.")] = 500,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the shards that --out holds.")] = False,
) -> None:
    """Render a small world of drawn scenes: photos, regions, captions, and questions with answers."""
    from data_tools.writer import prepare_directory

    if not 0 < dev_share <= 0.5:
        raise ConfigError(f"--dev-share {dev_share}: give a share above 0 and at most 0.5")
    dev = min(max(1, round(samples * dev_share)), samples - 1)
    splits: tuple[tuple[Split, int], ...] = (("train", samples - dev), ("dev", dev))
    for split, _ in splits:
        prepare_directory(out / split, overwrite=overwrite)
    for split, number in splits:
        report = write_split(out / split, split, number, seed, dev_share, samples_per_shard)
        typer.echo(f"{out / split}: {number} scenes, {report['captions']} captions, {report['questions']} questions")


def write_split(
    out: Path, split: Split, samples: int, seed: int, dev_share: float, samples_per_shard: int
) -> dict[str, Any]:
    """Write a split's shards, index and `import_report.json`; returns the report."""
    from data_tools.world.detector import CLASSES
    from data_tools.world.samples import world_samples
    from data_tools.world.scene import COLOURS, SHAPES
    from data_tools.writer import REPORT, ShardWriter
    from vlp.data.index import build_index

    asked: dict[str, int] = {}
    captions = 0
    with ShardWriter(out, samples_per_shard) as writer:
        for sample in world_samples(split, samples, seed, dev_share):
            writer.write(
                sample.key, sample.photo, "jpg", sample.regions, sample.captions, sample.questions, _metadata(sample)
            )
            captions += len(sample.captions)
            for question in sample.questions:
                form = question.id.split("-")[2]
                asked[form] = asked.get(form, 0) + 1
    report = {
        "read": samples,
        "written": samples,
        "skipped": [],
        "captions": captions,
        "questions": sum(asked.values()),
        "questions_per_form": asked,
        "colours": list(COLOURS),
        "shapes": list(SHAPES),
        "classes": list(CLASSES),
    }
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    build_index(out, made_by={"command": "shapes", "split": split, "seed": seed, "dev_share": dev_share})
    return report


def _metadata(sample: WorldSample) -> dict[str, Any]:
    """What is true of the scene, for people and tests; no model reads it."""
    from data_tools.world.scene import PHOTO

    scene = [asdict(thing) for thing in sample.scene]
    return {"id": sample.key, "width": PHOTO, "height": PHOTO, "scene": scene}
