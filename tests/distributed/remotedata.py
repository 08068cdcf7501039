"""Remote datasets, loaders of them and what the loaders give, for the tests of remote data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.unit.shard_reading import OwnPairs
from tests.unit.task_making import text_encoder
from vlp.data.batch import ImageForm, collate
from vlp.data.cache import CacheConfig
from vlp.data.dataset import Dataset
from vlp.data.index import open_index
from vlp.data.lengths import token_lengths
from vlp.data.loader import StepLoader
from vlp.data.order import Order
from vlp.seeds import Draw
from vlp.types import Batch, Example, Pair, RegionInput, Sample, Slot, Step

SHARDS, PER_SHARD, CAPTIONS = 8, 3, 2
EXAMPLES = SHARDS * PER_SHARD * CAPTIONS


def names(data: Dataset) -> list[str]:
    return [entry.name for entry in data.index.manifest.shards]


def sizes(data: Dataset) -> dict[str, int]:
    return {entry.name: entry.bytes for entry in data.index.manifest.shards}


def opened(url: str, cache: Path, *, shards: int = 100, **settings: Any) -> Dataset:
    """A remote dataset whose cache has room for so many shards, and a little for tables."""
    room = shards * 20_000 + 30_000
    index = open_index(url, CacheConfig.parse({"dir": str(cache), "bytes": room, "timeout": 20, **settings}))
    encoder = text_encoder()
    return Dataset(index, "captions", token_lengths(index, encoder.count, encoder.fingerprint, encoder.max_length))


class Plain(OwnPairs):
    """Takes regions as they are."""

    wants_image, wants_regions = False, True

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, number: int, rng: Draw, step: int
    ) -> Example:
        assert image.regions is not None
        features_RD = np.asarray(image.regions.features_RD, np.float32)
        regions = RegionInput(features_RD, np.asarray(image.regions.boxes_R4, np.float32))
        ids, special_T, word_T = text_encoder().encode(text.captions[number])
        return Example("", ids, special_T, word_T, regions)

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        return collate([example for slot in examples for example in slot], ImageForm("regions", 6), {})


def loader(data: Dataset, last: int = 8, groups: int = 1, **options: Any) -> StepLoader:
    order = Order([data.examples_S], seed=3, batch_size=8, groups=groups, block_shards=2)
    options = {"image_tokens": int, "micro_tokens": 60, "first_step": 0, "last_step": last, **options}
    return StepLoader([data], order, Plain(), **options)


def content(steps: Sequence[Step]) -> list[tuple[int, list[str], list[int], NDArray[np.float32]]]:
    """Everything that a model would see."""
    result = []
    for step in steps:
        assert not step.failure
        assert not step.quarantined
        for batch in step.micro_batches:
            features = np.asarray(batch.image.features_MD)  # type: ignore[union-attr]
            result.append((step.number, list(batch.ids), batch.text.ids_N.tolist(), features))
    return result


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other) and all(np.array_equal(a[3], b[3]) for a, b in zip(one, other, strict=True))
