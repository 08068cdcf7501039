import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vlp.data.order import Order
from vlp.errors import ConfigError, DataError
from vlp.types import Slot

shard_sizes = st.lists(st.integers(0, 50), min_size=1, max_size=7)


@st.composite
def orders(draw: st.DrawFn) -> dict:
    """Arguments of an order that is allowed."""
    groups = draw(st.integers(1, 3))
    sizes = draw(st.lists(shard_sizes, min_size=1, max_size=3))
    assume(all(sum(size > 0 for size in dataset) >= groups for dataset in sizes))
    return {
        "sizes": [np.array(dataset) for dataset in sizes],
        "weights": draw(st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes))),
        "seed": draw(st.integers(0, 1000)),
        "groups": groups,
        "batch_size": groups * draw(st.integers(1, 20)),
        "block_shards": draw(st.integers(1, 3)),
    }


def walk(order: Order, steps: int) -> list[Slot]:
    return [slot for step in range(steps) for slot in order.slots(step)]


@given(orders())
def test_each_epoch_has_each_example_once(arguments: dict) -> None:
    order = Order(**arguments)
    slots = walk(order, 60)
    seen: dict[tuple[int, int, int], Counter] = {}
    for slot in slots:
        seen.setdefault((slot.dataset, slot.epoch, slot.group), Counter())[order.identity(slot)] += 1
    for (dataset, epoch, group), examples in seen.items():
        assert max(examples.values()) == 1
        if (dataset, epoch + 1, group) in seen:  # the group has gone on, so it has read its part of this epoch wholly
            whole = {shard for shard, _ in examples}
            sizes = arguments["sizes"][dataset]
            assert len(examples) == sum(sizes[shard] for shard in whole)
    for dataset, sizes in enumerate(arguments["sizes"]):
        for epoch in range(100):
            if not all((dataset, epoch + 1, group) in seen for group in range(arguments["groups"])):
                break
            read = [identity for group in range(arguments["groups"]) for identity in seen[dataset, epoch, group]]
            assert sorted(read) == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]


@given(orders(), st.integers(0, 500))
def test_any_step_is_reached_without_the_ones_before(arguments: dict, step: int) -> None:
    walked = Order(**arguments)
    for earlier in range(max(0, step - 3), step):
        walked.slots(earlier)
    assert walked.slots(step) == Order(**arguments).slots(step)


@given(orders())
def test_epochs_and_blocks_follow_one_another(arguments: dict) -> None:
    order = Order(**arguments)
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for slot in walk(order, 30):
        before = places.get((slot.dataset, slot.group), (0, 0))
        assert before <= (slot.epoch, slot.block) <= (before[0] + 1, slot.block)
        places[slot.dataset, slot.group] = (slot.epoch, slot.block)


@given(orders())
def test_every_group_gives_the_same_number_group_after_group(arguments: dict) -> None:
    order = Order(**arguments)
    for slot in walk(order, 3):
        assert slot.group == slot.index * arguments["groups"] // arguments["batch_size"]
    assert [slot.index for slot in order.slots(7)] == list(range(arguments["batch_size"]))


def test_a_group_keeps_to_its_shards_within_an_epoch() -> None:
    order = Order([np.full(12, 5)], seed=3, batch_size=6, groups=3, block_shards=2)
    read: dict[tuple[int, int], set[int]] = {}
    for slot in walk(order, 30):
        read.setdefault((slot.epoch, slot.group), set()).update(order.block_shards(slot))
    for epoch in range(2):
        shares = [read[epoch, group] for group in range(3)]
        assert [len(share) for share in shares] == [4, 4, 4]
        assert set.union(*shares) == set(range(12))


def test_epochs_and_seeds_shuffle_differently() -> None:
    sizes = [np.full(5, 40)]
    order, other = (Order(sizes, seed=seed, batch_size=200, block_shards=2) for seed in (1, 2))
    epochs = [[order.identity(slot) for slot in order.slots(step)] for step in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert epochs[0] != [other.identity(slot) for slot in other.slots(0)]
    blocks = [[order.block_shards(slot) for slot in order.slots(step)[::10]] for step in range(2)]
    assert blocks[0] != blocks[1], "each epoch shuffles its shards anew"
    # Inside a block the examples of its shards are mixed.
    assert len({shard for shard, _ in epochs[0][:20]}) == 2


def test_neighbours_are_the_rest_of_the_block_each_once() -> None:
    order = Order([np.array([4, 3, 6])], seed=1, batch_size=1, block_shards=2)
    slot = order.slots(2)[0]
    size = sum(int(order.streams[0].sizes[shard]) for shard in order.block_shards(slot))
    assert sorted([*order.neighbours(slot), slot.example]) == list(range(size))
    assert list(order.neighbours(slot)) == list(order.neighbours(slot))


def test_wrong_arguments_are_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"batch\.size \(5\).*data\.groups \(2\)"):
        Order([np.array([3, 3])], seed=0, batch_size=5, groups=2)
    with pytest.raises(ConfigError, match=r"data\.groups is 3.*only 2 shards"):
        Order([np.array([3, 0, 3])], seed=0, batch_size=6, groups=3)
    with pytest.raises(ConfigError, match="weights"):
        Order([np.array([3]), np.array([3])], [1.0, 0.0], seed=0, batch_size=6)
    with pytest.raises(ConfigError, match="1 weights for 2 datasets"):
        Order([np.array([3]), np.array([3])], [1.0], seed=0, batch_size=6)
    with pytest.raises(DataError, match="no example"):
        Order([np.array([0, 0])], seed=0, batch_size=6)


@pytest.mark.parametrize("groups", [1, 100])
def test_forty_thousand_shards_are_nothing_special(groups: int) -> None:
    sizes = np.random.default_rng(0).integers(9_000, 11_000, 40_000)
    start = time.process_time()
    order = Order([sizes], seed=1, batch_size=4000, groups=groups)
    slots = order.slots(3_000_000)  # the 30th epoch of 400 million examples
    assert time.process_time() - start < 1  # 0.01 s with 1 group, 0.2 s with 100, on one core
    assert {slot.epoch for slot in slots} <= {29, 30}
