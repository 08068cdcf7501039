import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.unit.shard_making import write_samples
from vlp.data.batch import ImageForm, TargetForm, collate
from vlp.data.dataset import Dataset
from vlp.data.index import Block, build_index, open_index
from vlp.data.lengths import token_lengths
from vlp.data.loader import EvaluationLoader, StepLoader
from vlp.data.order import Order
from vlp.data.samples import Fault
from vlp.data.shards import BadSample
from vlp.data.workers import Parcel
from vlp.errors import ConfigError, DataError
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
        count = (shard + row) % 5
        seen = Regions(np.zeros((count, 2), np.float16), np.zeros((count, 4), np.float16)) if regions else None
        return Sample(f"k{row}", regions=seen, captions=("a", "b") if texts else ())


class FakePreparer:
    """Each slot gives its own pair and, if asked, one with another image of the block; hides one token."""

    wants_image = False
    wants_regions = True
    form = {"mlm": TargetForm("text", Target(np.zeros(0, np.int64), {"token": np.zeros(0, np.int64)}))}

    def __init__(self, negatives: int = 0, unusable: str = "", error: Exception | None = None) -> None:
        self.negatives, self.unusable, self.error = negatives, unusable, error

    def pairs(self, slot: Slot, block: Block, rng: np.random.Generator) -> tuple[Pair, ...]:
        images = rng.integers(0, len(block.row_S), self.negatives).tolist()
        own = Pair(int(block.sample_E[slot.example]), slot.example)
        return (own, *(Pair(image, slot.example, matched=False) for image in images))

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, number: int, rng: np.random.Generator, step: int
    ) -> Example:
        if self.error is not None and step == 3:
            raise self.error
        if image.key == self.unusable:
            raise Fault("image", "does not decode")
        assert image.regions is not None
        assert text.captions
        regions = RegionInput(image.regions.features_RD.astype(np.float32), image.regions.boxes_R4.astype(np.float32))
        length = 4 + (slot.dataset + number) % 3
        ids = rng.integers(0, 1000, length)
        target = Target(rng.integers(0, length, 1), {"token": np.array([1])})
        return Example("", ids, np.zeros(length, bool), ids, regions, pair.matched, {"mlm": target})

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        return collate([example for slot in examples for example in slot], ImageForm("regions", 2), self.form)


def steps_of(datasets: list[FakeDataset], order: Order, **options: object) -> list[Step]:
    arguments = {"image_tokens": lambda regions: regions, "micro_tokens": 60, "first_step": 0, "last_step": 6}
    preparer = options.pop("preparer", FakePreparer())
    return list(StepLoader(datasets, order, preparer, **(arguments | options)))


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


@given(datasets_and_order(), st.integers(1, 5), st.integers(0, 30), st.integers(0, 2))
def test_a_step_is_the_same_on_any_number_of_ranks(
    made: tuple[list[FakeDataset], Order], ranks: int, first: int, negatives: int
) -> None:
    datasets, order = made
    options = {"first_step": first, "last_step": first + 2, "preparer": FakePreparer(negatives)}
    alone = steps_of(datasets, order, **options)
    shared = [steps_of(datasets, order, rank=rank, world_size=ranks, **options) for rank in range(ranks)]
    for number, step in enumerate(alone):
        parts = [rank[number] for rank in shared]
        assert content(parts) == content([step])
        assert len({len(part.micro_batches) for part in parts}) == 1
        assert sum(part.examples for part in parts) == step.examples == order.batch_size * (1 + negatives)
        assert sum(part.cut_texts for part in parts) == step.cut_texts
        assert step.number == first + number


@given(datasets_and_order(), st.integers(0, 5), st.integers(1, 5), st.integers(1, 5))
def test_a_run_goes_on_at_any_step_on_another_number_of_ranks(
    made: tuple[list[FakeDataset], Order], stop: int, before: int, after: int
) -> None:
    datasets, order = made
    whole = [content([step]) for step in steps_of(datasets, order)]
    first = [steps_of(datasets, order, rank=r, world_size=before, last_step=stop) for r in range(before)]
    then = [steps_of(datasets, order, rank=r, world_size=after, first_step=stop) for r in range(after)]
    resumed = [content(parts) for parts in zip(*first, strict=True)] + [content(p) for p in zip(*then, strict=True)]
    assert resumed == whole


def order_of(*datasets: FakeDataset, batch_size: int = 12, groups: int = 2) -> Order:
    return Order([d.examples_S for d in datasets], seed=4, batch_size=batch_size, groups=groups, block_shards=2)


def test_masks_do_not_depend_on_groups_or_blocks() -> None:
    dataset = FakeDataset([6, 6, 6, 6])
    orders = [
        Order([dataset.examples_S], seed=4, batch_size=12, groups=groups, block_shards=shards)
        for groups, shards in ((1, 1), (2, 2), (4, 3))
    ]
    epochs = [content(steps_of([dataset], order, last_step=2)) for order in orders]
    assert epochs[0] == epochs[1] == epochs[2]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 2), (4, 1)])
def test_a_step_is_the_same_with_any_number_of_workers(ranks: int, workers: int) -> None:
    datasets = [FakeDataset([9, 0, 14, 5]), FakeDataset([3, 8], "e")]
    order = order_of(*datasets)
    shared = [steps_of(datasets, order, rank=r, world_size=ranks, workers=workers) for r in range(ranks)]
    assert [content(parts) for parts in zip(*shared, strict=True)] == [
        content([step]) for step in steps_of(datasets, order)
    ]


def test_micro_batches_keep_to_their_tokens_and_slots_stay_together() -> None:
    datasets = [FakeDataset([9, 12, 14, 5])]
    for step in steps_of(datasets, order_of(*datasets), preparer=FakePreparer(negatives=1), micro_tokens=80):
        assert len(step.micro_batches) > 1
        for batch in step.micro_batches:
            assert batch.tokens <= 80
            assert batch.ids[::2] == batch.ids[1::2]


def test_ids_name_shard_sample_and_text() -> None:
    names = {name for name, _ in content(steps_of([FakeDataset([3])], order_of(FakeDataset([3]), groups=1)))}
    assert names == {"d0/k0#0", "d0/k0#1", "d0/k1#0"}


def test_cut_texts_are_counted() -> None:
    dataset = FakeDataset([11])
    order = Order([dataset.examples_S], seed=1, batch_size=11)
    assert steps_of([dataset], order, last_step=1)[0].cut_texts == int(dataset.open_block((0,))[1].sum()) > 0


def test_the_tables_of_a_rank_s_open_blocks_are_kept() -> None:
    dataset = FakeDataset([5, 5, 5, 5])
    many_steps(dataset, groups=4, world_size=2)
    assert dataset.kept == 2 * 2 * 2, "two blocks (the old, the new) of two shards of each of its two groups"


def test_a_dataset_of_real_shards(tmp_path: Path) -> None:
    write_samples(tmp_path)
    build_index(tmp_path)
    index = open_index(tmp_path)
    lengths = token_lengths(index, lambda texts: [len(text) for text in texts], "letters", 14)
    dataset = Dataset(index, "captions", lengths)
    dataset.keep(40)
    assert dataset.examples_S.tolist() == [3, 3, 0]
    block, cut_E = dataset.open_block((0, 1))
    texts = []
    for row, number in zip(block.sample_E, block.text_E, strict=True):
        place = int(block.shard_S[row]), int(block.row_S[row])
        texts.append(dataset.read(*place, image=False, regions=False, texts=True).captions[number])
    expected = ["0 of 1", "0 of 2", "1 of 2 word", "0 of 4", "0 of 5", "1 of 5 word"]
    assert texts == [f"caption {text}" for text in expected]
    assert block.tokens_E.tolist() == [14] * 6
    assert cut_E.tolist() == [False, False, True, False, False, True]
    assert dataset.shard_name(1) == index.manifest.shards[1].name


# ------------------------------------------------------------------------------------------------- quarantine

BAD_IDS = {"d0/k3#0", "d0/k3#1", "d2/k5#0", "d2/k5#1"}


def test_a_bad_sample_is_replaced_by_a_neighbour_that_is_not_longer() -> None:
    sizes = [20, 20, 20, 20]
    whole = steps_of([FakeDataset(sizes)], order_of(FakeDataset(sizes)))
    dataset = FakeDataset(sizes, bad={(0, 3), (2, 5)})
    order = order_of(dataset)
    alone = steps_of([dataset], order)
    shared = [steps_of([dataset], order, rank=rank, world_size=3) for rank in range(3)]
    for number, (step, good) in enumerate(zip(alone, whole, strict=True)):
        parts = [rank[number] for rank in shared]
        assert content(parts) == content([step])
        assert step.examples == good.examples
        assert len(step.micro_batches) == len(good.micro_batches)
        names, before = ({name for name, _ in content([found])} for found in (step, good))
        assert not names & BAD_IDS
        assert len(step.quarantined) >= len(before & BAD_IDS)
    lines = [line for step in alone for line in step.quarantined]
    assert {"shard": "d0.tar", "key": "k3", "member": "json", "error": "is not valid JSON"} in lines


def test_the_split_stays_true_where_samples_are_replaced() -> None:
    dataset = FakeDataset([40, 40], bad={(0, row) for row in range(0, 20, 3)})
    order = Order([dataset.examples_S], seed=4, batch_size=16)
    options = {"image_tokens": int, "micro_tokens": 60, "first_step": 0, "last_step": 1}
    maker = StepLoader([dataset], order, FakePreparer(), **options).maker
    for step in range(5):
        plan = maker.plan(step)
        for place, slot in enumerate(plan.slots):
            drawn = list(maker._candidates(plan, place))
            assert drawn[0] == (slot, plan.pairs[place])
            longer = [maker._reader.tokens(*candidate) > plan.tokens[place] for candidate in drawn]
            assert longer == sorted(longer), "those that are not longer come first"
            assert len({candidate.example for candidate, _ in drawn}) == len(drawn) == 80


def test_an_image_that_the_task_cannot_use_is_replaced_too() -> None:
    dataset = FakeDataset([20, 20])
    steps = steps_of([dataset], order_of(dataset), preparer=FakePreparer(unusable="k4"))
    lines = [line for step in steps for line in step.quarantined]
    assert {(line["key"], line["member"], line["error"]) for line in lines} == {("k4", "image", "does not decode")}
    assert not any("/k4#" in name for name, _ in content(steps))
    assert [step.examples for step in steps] == [12] * 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_block_without_a_good_sample_is_a_sentence(workers: int) -> None:
    dataset = FakeDataset([2], bad={(0, 0)})
    with pytest.raises(DataError, match=r"^none of the 2 examples of a block .*d0\.tar: sample 'k0': json is not"):
        steps_of([dataset], order_of(dataset, groups=1), workers=workers)


# --------------------------------------------------------------------------------------------------- workers


@pytest.mark.parametrize("error", [ConfigError("one sentence"), BadSample("s.tar", "k", "json", "is bad")])
def test_an_error_for_the_user_arrives_as_it_was(error: Exception) -> None:
    # BadSample would be quarantined; from collate it is any other VlpError.
    class Broken(FakePreparer):
        def collate(self, examples: list[list[Example]], step: int) -> Batch:
            raise error

    dataset = FakeDataset([9, 9])
    with pytest.raises(type(error)) as caught:
        steps_of([dataset], order_of(dataset), preparer=Broken(), workers=1)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


def test_any_other_error_of_a_worker_stays_one() -> None:
    dataset = FakeDataset([9, 9])
    with pytest.raises(ZeroDivisionError) as caught:
        steps_of([dataset], order_of(dataset), preparer=FakePreparer(error=ZeroDivisionError()), workers=1)
    assert not children(), f"a kept traceback ({caught.tb}) must not keep workers"


def children() -> list[int]:
    """The loader's workers; ranks that other tests keep alive are no forks of this process."""
    alive = multiprocessing.active_children()
    return [process.pid or 0 for process in alive if isinstance(process, multiprocessing.context.ForkProcess)]


def many_steps(dataset: FakeDataset, *, groups: int = 1, world_size: int = 1, workers: int = 0) -> StepLoader:
    return StepLoader(
        [dataset],
        order_of(dataset, groups=groups),
        FakePreparer(),
        image_tokens=int,
        micro_tokens=60,
        first_step=0,
        last_step=10_000,
        world_size=world_size,
        workers=workers,
    )


def test_workers_ignore_signals_and_end_with_the_loader() -> None:
    steps = iter(many_steps(FakeDataset([9, 9]), workers=2))
    next(steps)
    workers = children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    assert [next(steps).number for _ in range(50)] == list(range(1, 51))
    assert children() == workers
    steps.close()
    assert not children()


def test_a_dead_worker_is_a_sentence() -> None:
    steps = iter(many_steps(FakeDataset([9, 9]), workers=1))
    next(steps)
    os.kill(children()[0], signal.SIGKILL)
    with pytest.raises(DataError, match=r"^a loader worker died .*data\.workers"):
        list(steps)


def test_a_parcel_holds_what_was_put_in() -> None:
    tensors = [torch.arange(5), torch.zeros(0, 3), torch.tensor([[True], [False]])]
    value = {"a": torch.tensor(3.5), "b": tensors, "c": "x"}
    found = Parcel.of(value).open()
    assert found["c"] == "x"
    assert found["a"].item() == 3.5
    for tensor, expected in zip(found["b"], tensors, strict=True):
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
    assert Parcel.of("nothing to move").open() == "nothing to move"


# ------------------------------------------------------------------------------------------------- evaluation


def evaluation(dataset: FakeDataset, **options: object) -> list[Step]:
    arguments = {"image_tokens": lambda regions: regions, "micro_tokens": 60, "seed": 1}
    return list(EvaluationLoader(dataset, FakePreparer(), **(arguments | options)))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=7), st.integers(1, 5))
def test_evaluation_sees_every_example_once_in_order(sizes: list[int], ranks: int) -> None:
    dataset = FakeDataset(sizes)
    shared = [evaluation(dataset, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert len({len(steps) for steps in shared}) == 1
    assert all(len(step.micro_batches) == 1 for steps in shared for step in steps)
    names = [name for steps in shared for step in steps for name in step.micro_batches[0].ids]
    assert names == [f"d{shard}/k{e // 2}#{e % 2}" for shard, size in enumerate(sizes) for e in range(size)]


def test_evaluation_shares_are_of_equal_tokens_and_batches_bounded() -> None:
    dataset = FakeDataset([40, 3, 60])
    shared = [evaluation(dataset, rank=rank, world_size=3) for rank in range(3)]
    blocks = [dataset.open_block((shard,))[0] for shard in range(3)]
    lengths = [block.tokens_E + block.regions_S[block.sample_E] for block in blocks]
    starts = np.cumsum([0, *(step.examples for rank in shared for step in rank)])
    sums = np.add.reduceat(np.append(np.concatenate(lengths), 0), starts[:-1])
    assert sums.max() <= 60
    loads = [sum(step.examples for step in rank) for rank in shared]
    tokens = np.split(np.concatenate(lengths), np.cumsum(loads)[:-1])
    assert max(map(sum, tokens)) - min(map(sum, tokens)) <= 2 * max(map(max, lengths))


def test_evaluation_leaves_bad_samples_out_and_records_them() -> None:
    found = evaluation(FakeDataset([10], bad={(0, 2)}))
    names = [name for step in found for name in step.micro_batches[0].ids]
    assert names == [f"d0/k{e // 2}#{e % 2}" for e in range(10) if e // 2 != 2]
    assert [line["key"] for step in found for line in step.quarantined] == ["k2", "k2"]


def test_evaluation_of_a_part() -> None:
    found = evaluation(FakeDataset([4, 10]), limit=7, workers=1)
    names = [name for step in found for name in step.micro_batches[0].ids]
    assert names == ["d0/k0#0", "d0/k0#1", "d0/k1#0", "d0/k1#1", "d1/k0#0", "d1/k0#1", "d1/k1#0"]
