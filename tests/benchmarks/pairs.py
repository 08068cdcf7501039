"""Pairs of images and real captions for benchmarks of training: shards at base sizes, and a run's steps of them.

Captions are COCO's where VLP_TEST_DATA is there, else made-up words of like number. Regions are made up, 10 to 100 of
an image as a detector's confidence decides, with classes and attributes. Photos are real ones where there are any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.writer import ShardWriter
from tests.benchmarks.material import photo_bytes, test_data
from tests.benchmarks.peers import ATTRIBUTES, CLASSES, FEATURES
from tests.benchmarks.regiondata import words_tokenizer
from vlp.assemble import Assembled, assemble, make_loader
from vlp.data.index import build_index
from vlp.distributed import World
from vlp.run import run_of
from vlp.types import Regions, Step

FEWEST, MOST = 10, 100
"""Regions of an image, as those of bottom-up attention's variable files."""
PER_IMAGE = 5


def captions(count: int) -> list[str]:
    """Real captions, an image's five one after the other, again from the first where there are too few."""
    data = test_data()
    if data is None:
        random = np.random.default_rng(0)
        lengths = np.clip(random.normal(11.5, 2.7, count), 6, 38).astype(int)
        return [" ".join(f"w{word}" for word in random.integers(10, 20000, length)) for length in lengths]
    found = json.loads(next((data / "coco_mini" / "annotations").glob("captions*.json")).read_text())["annotations"]
    found.sort(key=lambda caption: (caption["image_id"], caption["id"]))
    return [str(found[number % len(found)]["caption"]).strip() for number in range(count)]


def tokenizer(folder: Path) -> Path:
    """BERT's vocabulary, or one of made-up words of the same size."""
    data = test_data()
    return words_tokenizer(folder / "tokenizer", 30522) if data is None else data / "bert_vocab"


def region_pairs(folder: Path, images: int, regions: tuple[int, int] = (FEWEST, MOST)) -> Path:
    """Shards of images as regions, each with five captions."""
    random = np.random.default_rng(0)
    counts = random.integers(regions[0], regions[1] + 1, images)
    return _written(folder / "regions", [(None, _regions(int(count), random)) for count in counts])


def photo_pairs(folder: Path, images: int) -> Path:
    """Shards of photos, each with five captions."""
    photos, _ = photo_bytes(images)
    return _written(folder / "photos", [(photo, None) for photo in photos])


def _written(out: Path, images: Sequence[tuple[bytes | None, Regions | None]]) -> Path:
    texts = captions(PER_IMAGE * len(images))
    with ShardWriter(out, max(1, -(-len(images) // 4))) as writer:
        for number, (photo, regions) in enumerate(images):
            own = texts[PER_IMAGE * number : PER_IMAGE * (number + 1)]
            writer.write(f"s{number:06}", photo, "jpg", regions, own, metadata={"id": number})
    build_index(out)
    return out


def _regions(count: int, random: np.random.Generator) -> Regions:
    probs_RC = random.random((count, CLASSES)).astype(np.float32)
    return Regions(
        features_RD=random.random((count, FEATURES)).astype(np.float16),
        boxes_R4=np.sort(random.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32),
        confidence_R=random.random(count).astype(np.float32),
        class_probs_RC=(probs_RC / probs_RC.sum(1, keepdims=True)).astype(np.float16),
        classes_R=random.integers(0, CLASSES, count),
        attributes_R=random.integers(0, ATTRIBUTES, count),
        attribute_confidence_R=random.random(count).astype(np.float32),
    )


def assembled_run(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Assembled:
    """The parts of a run, as `vlp pretrain` puts them together."""
    return assemble(
        run_of({**values, "run": {"dir": "unused", "steps": 1000, "seed": 0}}, overrides, Path("benchmark"))
    )


def steps_of(assembled: Assembled, count: int, ranks: World | None = None) -> list[Step]:
    """The first steps of a run, read and packed for one of its ranks."""
    return list(make_loader(assembled, range(count), ranks))
