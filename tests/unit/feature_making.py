"""Small trained models and data for tests of features, search and the demo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.examples import shaken
from tests.unit.pictures import ramps
from tests.unit.shard_making import CLASSES, WIDTH, some_regions
from tests.unit.task_making import PIXELS, WORDS, dataset, text_encoder
from vlp import VisionLanguageModel
from vlp.data.dataset import Dataset
from vlp.distributed import world
from vlp.features.files import write
from vlp.features.job import Extracted, Request, extract_to
from vlp.features.rows import Layout, Row
from vlp.features.sources import Source
from vlp.models.model import ModelConfig, Network
from vlp.tasks.registry import AnyTaskConfig, make_task
from vlp.tasks.retrieval import RetrievalConfig
from vlp.tasks.saved import SavedTask
from vlp.tasks.task import Setting
from vlp.tasks.vqa import VqaConfig
from vlp.types import Sample

REGIONS = {"kind": "regions", "width": WIDTH, "classes": CLASSES, "max_regions": 4}
JOINT = [{"stream": "both", "repeat": 2, "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}]
DUAL: list[dict[str, Any]] = [
    {"stream": "text", "repeat": 2, "sublayers": ["self", "ffn"]},
    {"stream": "image", "sublayers": ["self", "ffn"]},
    {"stream": "both", "repeat": 2, "sublayers": ["cross", "self", "ffn"], "share": ["cross"]},
]
RETRIEVAL = RetrievalConfig.parse({"contrast": {"width": 6}})
BAG = RetrievalConfig.parse({"contrast": {"width": 6, "text": "mean"}})
"""For a single stream, whose text has read nothing of itself where it meets the image: a bag of its words."""
ANSWERS = ("red", "blue", "two")


def vqa(**more: Any) -> VqaConfig:
    return VqaConfig.parse({"answers": list(ANSWERS), **more})


def trained(
    encoder: list[dict[str, Any]] = DUAL,
    source: dict[str, Any] | None = None,
    task: AnyTaskConfig | None = None,
    **model: Any,
) -> VisionLanguageModel:
    """A model with the heads of a task and with every weight random."""
    config = ModelConfig.parse(
        {
            "text": {
                "vocab_size": text_encoder().vocab_size,
                "max_length": 16,
                "layer": {"width": 8, "heads": 2, "ffn": 16},
            },
            "image": {"source": source or REGIONS, "parts": [{"kind": "feature"}]},
            "encoder": encoder,
            **model,
        }
    )
    task = task or (BAG if encoder is JOINT else RETRIEVAL)
    heads = make_task(task, Setting(config, text_encoder(), 0)).heads
    network = Network(config.model_copy(update={"heads": heads}))
    for part in (network.text, *network.image.own_modules(), network.encoder, network.pooler, network.heads):
        shaken(part)
    return VisionLanguageModel(network, text_encoder(), task=SavedTask(task=task)).eval()


def other_model() -> VisionLanguageModel:
    """One number of its weights differs."""
    model = trained()
    with torch.no_grad():
        next(model.network.parameters()).view(-1)[0] += 1
    return model


def pixel_model(**more: Any) -> VisionLanguageModel:
    return trained(source=PIXELS, **more)


def samples(number: int) -> list[Sample]:
    """Samples of one to three captions of one to seven words, and of one to six regions."""
    rng = np.random.default_rng(7)
    made = []
    for each in range(number):
        captions = tuple(" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(rng.integers(1, 4)))
        made.append(Sample(f"s{each:03d}", regions=some_regions(int(rng.integers(1, 7)), each), captions=captions))
    return made


def feature_folder(path: Path, rows: Sequence[Row], layout: Layout, **facts: Any) -> dict[str, Any]:
    """A folder of features of one npz, without a model; returns its manifest."""
    path.mkdir(parents=True)
    write("npz", path / "x.npz", rows, layout)
    size = (path / "x.npz").stat().st_size
    manifest = {
        "rows": len(rows),
        "what": [one.name for one in layout.features],
        "shapes": {one.name: layout.shape(one) for one in layout.features},
        "widths": dict(layout.widths),
        "format": "npz",
        "dtype": "fp32",
        "data": "0",
        "source": "/data",
        "source_kind": "shards",
        "images": "",
        "options": {},
        "texts": "captions",
        "model": {"name": "m", "fingerprint": "0", "task": None, "config": {}},
        "quarantined": 0,
        "parts": [{"file": "x.npz", "rows": len(rows), "bytes": size, "quarantined": 0}],
        "request": {},
        **facts,
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def shards(folder: Path, number: int = 12, given: Sequence[Sample] | None = None) -> Dataset:
    return dataset(folder, given or samples(number), per_shard=5)


def photo_folder(folder: Path) -> Path:
    """Three photos, one with a text beside it, and a file that is none."""
    (folder / "deep").mkdir(parents=True)
    ramps(30, 40).save(folder / "one.jpg")
    ramps(50, 20).save(folder / "deep" / "two.png")
    ramps(25, 25).save(folder / "deep" / "two.webp")
    (folder / "one.txt").write_text("red circle\n")
    (folder / "notes.pdf").write_text("no image")
    return folder


def extract(out: Path, model: VisionLanguageModel, source: Source, **request: Any) -> Extracted:
    """An extraction on one rank; takes the fields of `Request` and the further options of `extract_to`."""
    means = {name: request.pop(name) for name in ("model_name", "micro_tokens", "workers") if name in request}
    with world() as ranks:
        return extract_to(out, model, source, Request(**request), ranks, **means)


def same_rows(one: Sequence[Row], other: Sequence[Row], atol: float = 1e-5) -> None:
    """The same rows in the same order, with arrays that are close."""
    for mine, theirs in zip(one, other, strict=True):
        assert (mine.id, mine.key, mine.image, mine.words) == (theirs.id, theirs.key, theirs.image, theirs.words)
        assert mine.arrays.keys() == theirs.arrays.keys()
        for name in mine.arrays:
            assert mine.arrays[name].shape == theirs.arrays[name].shape, name
            np.testing.assert_allclose(mine.arrays[name], theirs.arrays[name], atol=atol, err_msg=name)
