"""`vlp-data shapes`: render the small world into shards, for a first run and for tests of the whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_tools.options import Overwrite, SamplesPerShard, Workers
from vlp.errors import ConfigError

if TYPE_CHECKING:
    from data_tools.report import Report
    from data_tools.world.samples import WorldSample
    from data_tools.world.scene import Split


def shapes(
    out: Annotated[Path, typer.Option(help="Directory for the data; OUT/train and OUT/dev are written.")],
    samples: Annotated[int, typer.Option(min=2, help="Scenes, train and dev together.")],
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another world.")] = 0,
    dev_share: Annotated[float, typer.Option(help="Share of the scenes, and of the layouts, that dev gets.")] = 0.1,
    samples_per_shard: SamplesPerShard = 500,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Render a small world of drawn scenes: photos, regions, captions, and questions with answers."""
    from data_tools.pool import usable_cpus
    from data_tools.writer import prepare_directory

    if not 0 < dev_share <= 0.5:
        raise ConfigError(f"--dev-share {dev_share}: give a share above 0 and at most 0.5")
    dev = min(max(1, round(samples * dev_share)), samples - 1)
    splits: tuple[tuple[Split, int], ...] = (("train", samples - dev), ("dev", dev))
    for split, _ in splits:
        prepare_directory(out / split, overwrite=overwrite)
    for split, number in splits:
        report = write_split(out / split, split, number, seed, dev_share, samples_per_shard, workers or usable_cpus())
        report.show(out / split)


def write_split(
    out: Path,
    split: Split,
    samples: int,
    seed: int,
    dev_share: float,
    samples_per_shard: int,
    workers: int = 1,
) -> Report:
    """Write a split's shards, index and `import_report.json`; returns the report."""
    from data_tools.bar import Bar
    from data_tools.report import Report
    from data_tools.world.samples import world_samples
    from data_tools.writer import ShardWriter
    from vlp import __version__
    from vlp.data.build import build_index

    made_by = {"command": "shapes", "split": split, "seed": seed, "dev_share": dev_share}
    report = Report(made_by)
    with (
        ShardWriter(out, samples_per_shard) as writer,
        Bar(f"drawing {split}", samples) as bar,
    ):
        for sample in world_samples(split, samples, seed, dev_share, workers, bar.show):
            report.count("scenes")
            _write(writer, sample)
            report.wrote("captions", len(sample.captions))
            report.wrote("questions", len(sample.questions))
    report.wrote("samples", writer.samples)
    report.wrote("shards", writer.shards)
    report.save(out)
    build_index(out, made_by={"vlp": __version__, **made_by})
    return report


def _write(writer: Any, sample: WorldSample) -> None:
    """The JSON also tells what is true of the scene, for people and tests; no model reads it."""
    from data_tools.world.scene import PHOTO

    scene = [asdict(thing) for thing in sample.scene]
    metadata = {"id": sample.key, "width": PHOTO, "height": PHOTO, "scene": scene}
    writer.write(sample.key, sample.photo, "jpg", sample.regions, sample.captions, sample.questions, metadata)
