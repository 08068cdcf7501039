"""Datasets, tasks and orders made up for the loaders' tests: no file is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from vlp.data.batch import ImageForm, TargetForm, collate
from vlp.data.index import Block, Texts
from vlp.data.loader import StepLoader
from vlp.data.order import Order
from vlp.data.samples import Fault
from vlp.data.shards import BadSample
from vlp.seeds import Draw
from vlp.types import Batch, Example, Pair, RegionInput, Regions, Sample, Slot, Step, Target

LIMIT = 12
"""Tokens of a text in these tests; some are longer and are cut."""


@dataclass
class FakeDataset:
    """Shards of made-up samples: two texts each (an odd one at the end has one), 0 to 4 regions."""

    sizes: Sequence[int]
    name: str = "d"
    bad: set[tuple[int, int]] = field(default_factory=set)
    """(shard, row) of samples that cannot be read."""

    @property
    def examples_S(self) -> np.ndarray:
        return np.array(self.sizes, np.int64)

    def keep(self, shards: int) -> None:
        self.kept = shards

    gone: set[int] = field(default_factory=set)
    """Shards that cannot be opened."""
    texts: Texts = "captions"
    remote: None = None

    @property
    def directory(self) -> str:
        return f"data/{self.name}"

    def shard_name(self, shard: int) -> str:
        return f"{self.name}{shard}.tar"

    def open_block(self, shards: Sequence[int]) -> tuple[Block, np.ndarray]:
        rows = [np.arange((self.sizes[shard] + 1) // 2) for shard in shards]
        shard_S = np.repeat(shards, [len(part) for part in rows])
        first = np.cumsum([0, *(len(part) for part in rows)])
        row_S = np.concatenate([*rows, np.zeros(0, np.int64)])
        sample_E = [first[k] + np.arange(self.sizes[shard]) // 2 for k, shard in enumerate(shards)]
        text_E = np.concatenate([np.arange(self.sizes[shard]) % 2 for shard in shards])
        shard_E = np.repeat(shards, [self.sizes[shard] for shard in shards])
        row_E = np.concatenate([np.arange(self.sizes[shard]) for shard in shards])
        uncut_E = 4 + (shard_E * 31 + row_E * 7) % 11
        block = Block(
            shard_S=shard_S.astype(np.int32),
            row_S=row_S.astype(np.int32),
            regions_S=((shard_S + row_S) % 5).astype(np.int32),
            has_image_S=np.ones(len(row_S), bool),
            sample_E=np.concatenate(sample_E).astype(np.int32),
            text_E=text_E.astype(np.int32),
            tokens_E=np.minimum(uncut_E, LIMIT).astype(np.int32),
        )
        return block, uncut_E > LIMIT

    def read(self, shard: int, row: int, *, image: bool, regions: bool, texts: bool) -> Sample:
        if (shard, row) in self.bad:
            raise BadSample(self.shard_name(shard), f"k{row}", "json", "is not valid JSON")
        if shard in self.gone:
            raise BadSample(self.shard_name(shard), f"k{row}", "json", "cannot be read", whole_shard=True)
        count = (shard + row) % 5
        seen = Regions(np.zeros((count, 2), np.float16), np.zeros((count, 4), np.float16)) if regions else None
        return Sample(f"k{row}", regions=seen, captions=("a", "b") if texts else ())


class FakePreparer:
    """Each slot gives its own pair and, if asked, some with another image of the block; hides one token. How an image
    is looked at stands in the tokens."""

    wants_image = False
    wants_regions = draws_pairs = True
    form = {"mlm": TargetForm("text", Target(np.zeros(0, np.int64), {"token": np.zeros(0, np.int64)}))}

    def __init__(self, negatives: int = 0, unusable: str = "", error: Exception | None = None) -> None:
        self.negatives, self.unusable, self.error = negatives, unusable, error

    def pairs(self, slot: Slot, block: Block, rng: Draw) -> tuple[Pair, ...]:
        images = [rng.integers(len(block.row_S)) for _ in range(self.negatives)]
        own = Pair(int(block.sample_E[slot.example]), slot.example)
        return (own, *(Pair(image, slot.example, matched=False) for image in images))

    def shown(self, image: Sample, rng: Draw) -> Sample:
        return image

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, number: int, rng: Draw, step: int
    ) -> Example:
        if self.error is not None and step == 3:
            raise self.error
        if image.key == self.unusable:
            raise Fault("image", "does not decode")
        assert image.regions is not None
        assert text.captions
        regions = RegionInput(image.regions.features_RD.astype(np.float32), image.regions.boxes_R4.astype(np.float32))
        length = 4 + (slot.dataset + number) % 3
        ids = np.array([rng.integers(1000) for _ in range(length)])
        target = Target(np.array([rng.integers(length)]), {"token": np.array([1])})
        if (view := image.view) is not None and view.box is not None:
            ids = np.append(ids, [round(1e6 * view.brightness), round(1e6 * view.box[0]), view.mirrored])
        return Example("", ids, np.zeros(len(ids), bool), ids, regions, pair.matched, {"mlm": target})

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        return collate([example for slot in examples for example in slot], ImageForm("regions", 2), self.form)


def loader_of(datasets: list[FakeDataset], order: Order, **options: object) -> StepLoader:
    arguments = {"image_tokens": int, "micro_tokens": 60, "first_step": 0, "last_step": 6}
    preparer = options.pop("preparer", FakePreparer())
    return StepLoader(datasets, order, preparer, **(arguments | options))


def steps_of(datasets: list[FakeDataset], order: Order, **options: object) -> list[Step]:
    return list(loader_of(datasets, order, **options))


def content(steps: Sequence[Step]) -> list[tuple[str, list[int]]]:
    """Id and (random) tokens of every example of one step of all ranks, sorted."""
    result = []
    for step in steps:
        for batch in step.micro_batches:
            tokens = batch.text.ids_N.split(list(batch.text.packing.lengths))
            result += [(name, ids.tolist()) for name, ids in zip(batch.ids, tokens, strict=True)]
    return sorted(result)


@st.composite
def datasets_and_order(draw: st.DrawFn) -> tuple[list[FakeDataset], Order]:
    groups = draw(st.integers(1, 3))
    shards = st.lists(st.integers(0, 50), min_size=1, max_size=7)
    sizes = draw(st.lists(shards, min_size=1, max_size=3))
    assume(all(sum(size > 0 for size in dataset) >= groups for dataset in sizes))
    datasets = [FakeDataset(part, name) for part, name in zip(sizes, "xyz", strict=False)]
    order = Order(
        [dataset.examples_S for dataset in datasets],
        draw(st.lists(st.floats(0.2, 4), min_size=len(sizes), max_size=len(sizes))),
        seed=draw(st.integers(0, 99)),
        groups=groups,
        batch_size=groups * draw(st.integers(1, 12)),
        block_shards=draw(st.integers(1, 3)),
    )
    return datasets, order


def order_of(*datasets: FakeDataset, batch_size: int = 12, groups: int = 2) -> Order:
    return Order([d.examples_S for d in datasets], seed=4, batch_size=batch_size, groups=groups, block_shards=2)


def many_steps(dataset: FakeDataset, *, groups: int = 1, **options: object) -> StepLoader:
    return loader_of([dataset], order_of(dataset, groups=groups), **({"last_step": 10_000} | options))
