"""Reading real shards in tests: a dataset whose words are its tokens, and a task that looks at every member."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.shard_making import WIDTH
from vlp.data.batch import ImageForm, collate
from vlp.data.dataset import Dataset
from vlp.data.image import PixelImages, RegionImages
from vlp.data.index import Block, open_index
from vlp.data.lengths import token_lengths
from vlp.data.loader import StepLoader
from vlp.data.order import Order
from vlp.seeds import Draw
from vlp.types import Batch, Example, Pair, Sample, Slot, Step

OPTIONS: dict[str, Any] = {"image_tokens": int, "micro_tokens": 40}


def opened(directory: Path) -> Dataset:
    """An indexed directory; its lengths are counted in words."""
    index = open_index(directory)
    return Dataset(index, "both", token_lengths(index, lambda texts: [len(t.split()) for t in texts], "words", 20))


class OwnPairs:
    """Of a preparer that takes each text with its own image, as it is."""

    draws_pairs = False

    def pairs(self, slot: Slot, block: Block, rng: Draw) -> tuple[Pair, ...]:
        return (Pair(int(block.sample_E[slot.example]), slot.example),)

    def shown(self, image: Sample, rng: Draw) -> Sample:
        return image


class Looker(OwnPairs):
    """Takes every member of a sample, the picture's pixels too."""

    wants_image = wants_regions = True

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, number: int, rng: Draw, step: int
    ) -> Example:
        PixelImages(8, 1).prepare(image)
        words = (*text.captions, *(question.text for question in text.questions))[number].split()
        ids = np.arange(len(words))
        return Example("", ids, np.zeros(len(words), bool), ids, RegionImages(WIDTH).prepare(image))

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        return collate([example for slot in examples for example in slot], ImageForm("regions", WIDTH), {})


def loader(dataset: Dataset, *, steps: int = 3, block_shards: int = 2, **more: Any) -> StepLoader:
    """Steps of four examples."""
    order = Order([dataset.examples_S], seed=1, batch_size=4, block_shards=block_shards)
    return StepLoader([dataset], order, Looker(), first_step=0, last_step=steps, **OPTIONS, **more)


def ids(steps: list[Step]) -> list[str]:
    """Of the examples of some steps, sorted."""
    return sorted(name for step in steps for batch in step.micro_batches for name in batch.ids)
