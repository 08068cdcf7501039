"""Features of a dataset out of a trained model, as parquet.

Each rank writes one part, under a temporary name until it is whole; the parts in turn hold the examples in index order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vlp.data.dataset import Dataset
from vlp.distributed import World, barrier
from vlp.errors import ConfigError, nearest
from vlp.evaluate import Inference, Precision
from vlp.tasks.judge import Judge
from vlp.tasks.saved import Trained
from vlp.tasks.task import Task, TaskConfig
from vlp.types import Batch, Example, Pair, Sample, Slot

if TYPE_CHECKING:
    import pyarrow as pa

    from vlp.tasks.module import TaskModule

What = Literal["pooled", "text", "image", "text.unimodal", "image.unimodal"]
WHAT: tuple[What, ...] = ("pooled", "text", "image", "text.unimodal", "image.unimodal")
"""Features that can be had: one vector per example; one per text or image token; those before the streams meet."""


class _Plain(Task):
    """Pairs as they are, without anything hidden."""

    objectives = {}

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: np.random.Generator, step: int
    ) -> Example:
        return self.bare_example(image, self.text_of(text, text_number))

    def evaluate(self, judge: Judge) -> dict[str, float]:
        return {}


def parse_what(text: str) -> tuple[What, ...]:
    """The features that `--what` names, separated by commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in WHAT:
            raise ConfigError(f"--what: '{name}' cannot be extracted{nearest(name, WHAT)}")
    if not names:
        raise ConfigError(f"--what: give at least one of {', '.join(WHAT)}")
    return tuple(name for name in WHAT if name in names)


def extract(
    trained: Trained,
    dataset: Dataset,
    out: Path,
    what: Sequence[What],
    world: World,
    *,
    micro_tokens: int,
    precision: Precision = "fp32",
) -> tuple[int, int]:
    """Write the features of every example, one row each: its `id` and a column per feature.

    A column of tokens holds a list of vectors; `pooled` holds one. Numbers are float32.

    Returns:
        examples written and examples left out because they cannot be read, over all ranks; zeros but on rank 0.
    Raises:
        ConfigError: `out` holds features already.
    """
    import pyarrow.parquet as pq

    if list(out.glob("*.parquet")):
        raise ConfigError(f"--out: {out} holds features already; take another folder")
    barrier(world)
    out.mkdir(parents=True, exist_ok=True)
    task = _Plain(TaskConfig(texts=dataset.texts), trained.task.setting)
    judge = Judge(Inference(trained.module(), world, precision), dataset, micro_tokens, seed=0)
    name = f"features-{world.rank:05d}-of-{world.size:05d}.parquet"
    rows, writer = 0, None
    for step in judge.batches(task):
        for batch in step.micro_batches:
            table = _table(batch.ids, judge.run(batch, lambda module, moved: _features(module, moved, what)))
            writer = writer or pq.ParquetWriter(out / f".{name}.partial", table.schema)
            if len(batch):
                writer.write_table(table)
            rows += len(batch)
    if writer is not None:
        writer.close()
        os.replace(out / f".{name}.partial", out / name)
    total = int(sum(judge.gathered([rows])))
    lost = judge.gathered(list(judge.left_out.values()))
    if world.is_main:
        _manifest(out, trained, dataset, what, total, lost)
    return total, len(lost)


def _features(module: TaskModule, batch: Batch, what: Sequence[What]) -> dict[str, list[Any]]:
    """Per feature, a list over examples."""
    encoded = module.model(batch)
    states = {"text": encoded.text_NH, "image": encoded.image_MH, **encoded.taps}
    result: dict[str, list[Any]] = {}
    for name in what:
        if name == "pooled":
            result[name] = list(encoded.pooled_BH.float().cpu().numpy())
            continue
        packing = batch.text.packing if name.startswith("text") else batch.image.packing
        parts = states[name].float().cpu().split(list(packing.lengths))
        result[name] = [list(part.numpy()) for part in parts]
    return result


def _table(ids: Sequence[str], features: dict[str, list[Any]]) -> pa.Table:
    import pyarrow as pa

    vector = pa.list_(pa.float32())
    columns = {"id": pa.array(ids, pa.string())}
    for name, values in features.items():
        columns[name] = pa.array(values, vector if name == "pooled" else pa.list_(vector))
    return pa.table(columns)


def _manifest(
    out: Path, trained: Trained, dataset: Dataset, what: Sequence[What], rows: int, lost: Sequence[dict[str, str]]
) -> None:
    config = trained.model.config
    facts = {
        "rows": rows,
        "what": list(what),
        "widths": {name: config.layer("image" if name.startswith("image") else "text").width for name in what},
        "data": dataset.index.manifest.fingerprint,
        "texts": dataset.texts,
        "quarantined": list(lost),
    }
    (out / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
