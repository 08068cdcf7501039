import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.loader_making import (
    FakeDataset,
    FakePreparer,
    content,
    datasets_and_order,
    loader_of,
    many_steps,
    order_of,
    steps_of,
)
from tests.unit.shard_making import write_samples
from tests.unit.task_making import block
from vlp.data.augment import AugmentConfig
from vlp.data.dataset import Dataset
from vlp.data.index import build_index, open_index
from vlp.data.lengths import token_lengths
from vlp.data.order import Order
from vlp.data.samples import Fault
from vlp.data.slots import OpenBlock
from vlp.seeds import Draw
from vlp.types import Batch, Example, Pair, Sample

AUGMENT = AugmentConfig.parse({"flip": {}, "crop": {"kind": "shifted"}, "colour": {"brightness": 0.5}})

Cluster = tuple[int, int]
"""Ranks, and workers of each."""

clusters = st.tuples(st.integers(1, 5), st.integers(0, 3))


def sequence(made: tuple[list[FakeDataset], Order], cluster: Cluster, first: int, last: int, **options: object) -> list:
    """Ids and drawn tokens of every step, over all ranks; each worker has a loader of its own, as after a fork."""
    ranks, workers = cluster
    datasets, order = made
    makers = {
        (rank, worker): loader_of(datasets, order, rank=rank, world_size=ranks, **options).maker
        for rank in range(ranks)
        for worker in range(max(1, workers))
    }
    steps = []
    for number in range(first, last):
        parts = [makers[rank, number % max(1, workers)].make(number) for rank in range(ranks)]
        assert len({len(part.micro_batches) for part in parts}) == 1, "all ranks run equally many micro-batches"
        steps.append(content(parts))
    return steps


@settings(max_examples=25)
@given(datasets_and_order(), clusters, st.integers(0, 40), st.integers(0, 2), st.booleans())
def test_the_sequence_of_examples_is_the_same_on_every_cluster(
    made: tuple[list[FakeDataset], Order], cluster: Cluster, first: int, negatives: int, augmented: bool
) -> None:
    options = {"preparer": FakePreparer(negatives), "augment": AUGMENT if augmented else None}
    alone = sequence(made, (1, 0), first, first + 3, **options)
    assert all(len(step) == made[1].batch_size * (1 + negatives) for step in alone)
    for other in ((2, 2), (4, 1), cluster):
        assert sequence(made, other, first, first + 3, **options) == alone


def test_an_example_s_key_is_of_its_place_in_its_shard_wherever_that_stands() -> None:
    def keys(seed: int, texts: tuple[int, ...], shards: list[int]) -> list[int]:
        tables = replace(block(*texts), shard_S=np.array(shards, np.int32))
        none_E, none_S = np.zeros(sum(texts), np.bool_), np.zeros(len(texts), np.int64)
        return OpenBlock(tables, none_E, none_S, seed).keys_E.tolist()

    both = keys(5, (2, 1, 3), [4, 4, 9])
    assert len(set(both)) == 6
    assert keys(5, (3, 2, 1), [9, 4, 4]) == both[3:] + both[:3]
    assert keys(5, (3,), [9]) == both[3:]
    assert keys(5, (0, 0), [4, 4]) == []
    assert not {*keys(6, (2, 1, 3), [4, 4, 9])} & {*both}


@settings(max_examples=25)
@given(datasets_and_order(), st.lists(st.tuples(clusters, st.integers(0, 4)), min_size=1, max_size=4))
def test_a_run_that_is_stopped_goes_on_on_any_cluster(
    made: tuple[list[FakeDataset], Order], stretches: list[tuple[Cluster, int]]
) -> None:
    done, steps = 0, []
    for cluster, length in stretches:
        steps += sequence(made, cluster, done, done + length)
        done += length
    assert steps == sequence(made, (1, 0), 0, done)


@settings(max_examples=4)
@given(datasets_and_order(), st.integers(0, 5), st.sampled_from([(2, 2), (4, 1)]), st.sampled_from([(1, 1), (3, 2)]))
def test_real_workers_give_the_same_sequence_and_go_on(
    made: tuple[list[FakeDataset], Order], stop: int, before: Cluster, after: Cluster
) -> None:
    datasets, order = made
    steps = []
    for (ranks, workers), first, last in ((before, 0, stop), (after, stop, 6)):
        options = {"workers": workers, "world_size": ranks, "first_step": first, "last_step": last}
        shared = [steps_of(datasets, order, rank=rank, **options) for rank in range(ranks)]
        steps += [content(parts) for parts in zip(*shared, strict=True)]
    assert steps == sequence(made, (1, 0), 0, 6)


@settings(max_examples=25)
@given(datasets_and_order(), st.integers(1, 5))
def test_ranks_count_what_they_have(made: tuple[list[FakeDataset], Order], ranks: int) -> None:
    datasets, order = made
    alone = steps_of(datasets, order, last_step=2)
    shared = [steps_of(datasets, order, rank=rank, world_size=ranks, last_step=2) for rank in range(ranks)]
    for number, step in enumerate(alone):
        parts = [rank[number] for rank in shared]
        assert sum(part.examples for part in parts) == step.examples == order.batch_size
        assert sum(part.cut_texts for part in parts) == step.cut_texts
        assert [part.number for part in (*parts, step)] == [number] * (ranks + 1)


def test_masks_and_views_do_not_depend_on_groups_or_blocks() -> None:
    dataset = FakeDataset([6, 6, 6, 6])
    orders = [
        Order([dataset.examples_S], seed=4, batch_size=12, groups=groups, block_shards=shards)
        for groups, shards in ((1, 1), (2, 2), (4, 3))
    ]
    epochs = [content(steps_of([dataset], order, last_step=2, augment=AUGMENT)) for order in orders]
    assert epochs[0] == epochs[1] == epochs[2]


def test_micro_batches_keep_to_their_tokens_and_slots_stay_together() -> None:
    datasets = [FakeDataset([9, 12, 14, 5])]
    for step in steps_of(datasets, order_of(*datasets), preparer=FakePreparer(negatives=1), micro_tokens=80):
        assert len(step.micro_batches) > 1
        for batch in step.micro_batches:
            assert batch.tokens <= 80
            assert batch.ids[::2] == batch.ids[1::2]


def test_what_a_step_makes_of_a_pair_beside_it_counts_for_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    preparer, own = FakePreparer(), FakePreparer.pairs

    def twice(*given: Any) -> tuple[Pair, ...]:
        return tuple(pair._replace(text_passes=2.0, image_passes=2.5) for pair in own(preparer, *given))

    monkeypatch.setattr(preparer, "pairs", twice)
    datasets = [FakeDataset([9, 12, 14, 5])]
    for step in steps_of(datasets, order_of(*datasets), preparer=preparer, micro_tokens=80):
        for batch in step.micro_batches:
            assert 2 * batch.text.packing.tokens + 2.5 * batch.image.packing.tokens <= 80


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
    first = {"data": "data/d", "shard": "d0.tar", "key": "k3", "member": "json", "error": "is not valid JSON"}
    assert first in lines


def test_the_split_stays_true_where_samples_are_replaced() -> None:
    dataset = FakeDataset([40, 40], bad={(0, row) for row in range(0, 20, 3)})
    order = Order([dataset.examples_S], seed=4, batch_size=16)
    maker = loader_of([dataset], order).maker
    for step in range(5):
        plan = maker.plan(step)
        for place, slot in enumerate(plan.slots):
            drawn = list(maker._neighbours(plan, place))
            longer = [maker._reader.lengths(*candidate)[0] > plan.lengths[place][0] for candidate in drawn]
            assert longer == sorted(longer), "those that are not longer come first"
            assert len({candidate.example for candidate, _ in drawn} - {slot.example}) == len(drawn) == 79


def test_an_image_that_the_task_cannot_use_is_replaced_too() -> None:
    dataset = FakeDataset([20, 20])
    steps = steps_of([dataset], order_of(dataset), preparer=FakePreparer(unusable="k4"))
    lines = [line for step in steps for line in step.quarantined]
    assert {(line["key"], line["member"], line["error"]) for line in lines} == {("k4", "image", "does not decode")}
    assert not any("/k4#" in name for name, _ in content(steps))
    assert [step.examples for step in steps] == [12] * 6


def test_all_images_of_a_micro_batch_are_decoded_before_anything_else() -> None:
    done: list[str] = []

    class Noting(FakePreparer):
        def shown(self, image: Sample, rng: Draw) -> Sample:
            done.append("image")
            if image.key == "k3":
                raise Fault("image", "does not decode")
            return image

        def example(self, *given: Any) -> Example:
            done.append("rest")
            return super().example(*given)

        def collate(self, examples: list[list[Example]], step: int) -> Batch:
            done.append("batch")
            return super().collate(examples, step)

    datasets = [FakeDataset([9, 12, 14, 5])]
    steps = steps_of(datasets, order_of(*datasets), preparer=Noting(), micro_tokens=80)
    lost = [record for step in steps for record in step.quarantined]
    assert {(record["key"], record["error"]) for record in lost} == {("k3", "does not decode")}
    assert all(step.examples == sum(map(len, step.micro_batches)) for step in steps)
    parts = " ".join(done).split("batch")
    assert len(parts) > 2
    for part in parts:
        assert part.split() == sorted(part.split())


def test_a_shard_that_is_gone_is_tried_once_per_slot() -> None:
    dataset = FakeDataset([30, 30], gone={0})
    for step in steps_of([dataset], order_of(dataset, groups=1)):
        assert step.examples == 12
        assert 0 < len(step.quarantined) <= 12, "a slot asks one sample of the shard, not all of them"
        assert not any(name.startswith("d0/") for batch in step.micro_batches for name in batch.ids)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_block_without_a_good_sample_is_a_failure_that_the_step_carries(workers: int) -> None:
    # No error: the other ranks would wait for this one.
    dataset = FakeDataset([2], bad={(0, 0)})
    for step in steps_of([dataset], order_of(dataset, groups=1), workers=workers):
        assert not step.micro_batches
        told = r"^data/d: no example of a block .*d0\.tar: sample 'k0': json is not.*`vlp-data verify data/d --repair"
        assert re.match(told, step.failure)
