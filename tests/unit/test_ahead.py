from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from vlp.data.ahead import LookAhead
from vlp.data.balance import split
from vlp.data.order import Order
from vlp.data.prefetch import Prefetcher
from vlp.errors import DataError


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 40),
)
def test_the_blocks_told_are_those_that_are_read(
    sizes: list[list[int]], groups: int, block_shards: int, step: int
) -> None:
    assume(all(sum(size > 0 for size in dataset) >= groups for dataset in sizes))
    order = Order([np.array(s) for s in sizes], seed=5, batch_size=2 * groups, groups=groups, block_shards=block_shards)
    for group in range(groups):
        for dataset in range(len(sizes)):
            told = order.blocks_from(step, group, dataset, 4)
            read: list[tuple[int, int, tuple[int, ...]]] = []
            later = step
            while len(read) < 4:
                for slot in order.group_slots(later, group):
                    block = (slot.epoch, slot.block, order.block_shards(slot))
                    if slot.dataset == dataset and block not in read:
                        read.append(block)
                later += 1
            assert told == [shards for _, _, shards in read[:4]]


class _Remote:
    """An index that notes what it is asked for."""

    directory = "s3://bucket/x"

    def __init__(self) -> None:
        self.asked: list[tuple[set[int], set[int], set[int]]] = []
        self.room: list[int] = []

    def ahead(self, now: Any, then: Any, tables: Any) -> None:
        self.asked.append((set(now), set(then), set(tables)))

    def check_room(self, shards: int) -> None:
        self.room.append(shards)


class _Dataset:
    def __init__(self, remote: _Remote | None) -> None:
        self.remote = remote
        self.lengths = self
        self.stored = True


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_ranks_ask_for_their_groups_shards_and_for_all_tables(ranks: int, groups: int, block_shards: int) -> None:
    order = Order([np.full(12, 5)], seed=2, batch_size=groups, groups=groups, block_shards=block_shards)
    for rank in range(ranks):
        remote = _Remote()
        look = LookAhead([_Dataset(remote)], order, rank, ranks)  # type: ignore[list-item]
        for step in range(5):
            look.at(step)
        for (now, then, tables), before in zip(remote.asked, [None, *remote.asked], strict=False):
            assert (now, then, tables) != before, "asked once per change"
        now, then, tables = remote.asked[0]
        everything = {
            shard for group in range(groups) for block in order.blocks_from(0, group, 0, 2) for shard in block
        }
        assert now | then | tables == everything
        assert remote.room == [block_shards * len(_groups_of(rank, ranks, groups))]
        assert now == {s for group in _groups_of(rank, ranks, groups) for s in order.blocks_from(0, group, 0, 1)[0]}


def _groups_of(rank: int, ranks: int, groups: int) -> list[int]:
    """The groups whose slots the split gives to a rank, found by splitting a batch of one slot per group and rank."""
    tokens = [1] * (groups * ranks)
    places = [place for micro_batch in split(tokens, ranks, groups, 10_000)[rank] for place in micro_batch]
    reached = {place // ranks for place in places}
    # Ranks that share groups may not be dealt a slot of each; those between are shared too.
    sets = np.gcd(ranks, groups)
    width = groups // sets
    first = min(reached) // width * width
    assert max(reached) < first + width
    return list(range(first, first + width))


def test_local_data_are_left_alone() -> None:
    order = Order([np.full(3, 5)], seed=2, batch_size=2)
    LookAhead([_Dataset(None)], order, 0, 1).at(0)  # type: ignore[list-item]


# ------------------------------------------------------------------------------------------------------------- threads


def _until(reached: Any) -> None:
    deadline = time.monotonic() + 10
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reached()


def test_jobs_are_done_in_order_once_and_failures_are_left_to_the_reader() -> None:
    done: list[int] = []

    def work(job: int) -> None:
        done.append(job)
        if job == 2:
            raise DataError("no")
        if job == 3:
            raise RuntimeError("not foreseen")

    prefetcher = Prefetcher(work, 1)
    prefetcher.want([1, 2, 3, 4, 1])
    _until(lambda: len(done) == 4)
    prefetcher.want([3, 4, 5])
    _until(lambda: 5 in done)
    prefetcher.want([1])
    _until(lambda: len(done) == 6)
    assert done == [1, 2, 3, 4, 5, 1], "what was not wanted meanwhile is done again"


def test_what_is_wanted_no_more_is_not_begun() -> None:
    done: list[int] = []
    go = threading.Event()

    def work(job: int) -> None:
        go.wait(10)
        done.append(job)

    prefetcher = Prefetcher(work, 2)
    prefetcher.want([1, 2, 3, 4])
    time.sleep(0.1)
    prefetcher.want([2, 5])
    go.set()
    _until(lambda: len(done) == 3)
    assert sorted(done) == [1, 2, 5]


def _note(job: int) -> None:
    os.write(job, b"x")


def test_a_fork_and_a_copy_have_threads_of_their_own() -> None:
    read, write = os.pipe()
    prefetcher = Prefetcher(_note, 2)
    prefetcher.want([write])
    _until(lambda: not any(thread.is_alive() for thread in prefetcher._threads))
    pickle.loads(pickle.dumps(prefetcher)).want([write])
    process = multiprocessing.get_context("fork").Process(target=_want_and_wait, args=(prefetcher, write))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert os.read(read, 9) == b"xxx"


def _want_and_wait(prefetcher: Prefetcher[int], job: int) -> None:
    prefetcher.want([job])
    for thread in prefetcher._threads:
        thread.join(10)
    os._exit(0 if prefetcher._threads else 1)
