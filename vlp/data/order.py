"""The order of training: which example stands in which slot of which step, as a pure function of its arguments.

Per dataset and epoch the shards are shuffled and dealt to groups; a group's shards are cut into blocks, and the
examples inside a block are shuffled. A group reads its epochs one after the other without end, and every step takes
the next examples of each group, so batches straddle epochs and nothing is dropped or repeated.

Memory is O(shards + open blocks); any step is reached without walking examples. Knows sizes only: no torch, no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlp.data.mixture import Mixture
from vlp.data.recent import Recent
from vlp.errors import ConfigError, DataError
from vlp.seeds import generator
from vlp.types import Slot

OPEN_EPOCHS = 4
"""Shuffled shard lists kept: groups of unequal size can be an epoch or two apart."""


@dataclass(frozen=True, slots=True)
class _Epoch:
    """One group's share of one epoch."""

    shards: NDArray[np.int32]
    """The group's shards, in the order they are read."""
    block_ends: NDArray[np.int64]
    """Examples of the group's epoch up to the end of each block."""


class Stream:
    """The endless sequence of one dataset's examples, per group."""

    def __init__(self, sizes: NDArray[np.int64], *, seed: int, dataset: int, groups: int, block_shards: int) -> None:
        self.sizes = sizes
        self.block_shards = block_shards
        self._seed, self._dataset, self._groups = seed, dataset, groups
        # Empty shards take no part, so that every group has an example in every epoch.
        self._filled = np.flatnonzero(sizes).astype(np.int32)
        if len(self._filled) < groups:
            raise ConfigError(
                f"data.groups is {groups}, but dataset {dataset} of data.train has only {len(self._filled)} shards "
                "with examples: use fewer groups or make smaller shards"
            )
        # A group's examples before each epoch: row e counts epochs 0 to e - 1. Grows as later epochs are reached.
        self._before = [np.zeros(groups, np.int64)]
        self._deals = Recent(self._deal, OPEN_EPOCHS)
        self._epochs = Recent(self._open_epoch, OPEN_EPOCHS * groups)
        self._permutations = Recent(self._permute, 2 * groups + 2)

    def epoch(self, epoch: int, group: int) -> _Epoch:
        return self._epochs[epoch, group]

    def block(self, epoch: int, group: int, block: int) -> tuple[int, ...]:
        """The shards of a block."""
        first = block * self.block_shards
        return tuple(self.epoch(epoch, group).shards[first : first + self.block_shards].tolist())

    def take(self, group: int, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(epoch, block, example in the block) of the group's examples `start` to `start + count - 1`."""
        while count > 0:
            epoch, offset = self._locate(group, start)
            ends = self.epoch(epoch, group).block_ends
            block = int(np.searchsorted(ends, offset, side="right"))
            inside = offset - (int(ends[block - 1]) if block else 0)
            examples = self._permutations[epoch, group, block][inside : inside + count].tolist()
            for example in examples:
                yield epoch, block, example
            start += len(examples)
            count -= len(examples)

    def blocks_from(self, group: int, position: int, count: int) -> list[tuple[int, ...]]:
        """The shards of the block that a group's example at `position` lies in, and of the blocks after it."""
        epoch, offset = self._locate(group, position)
        block = int(np.searchsorted(self.epoch(epoch, group).block_ends, offset, side="right"))
        blocks: list[tuple[int, ...]] = []
        while len(blocks) < count:
            if block == len(self.epoch(epoch, group).block_ends):
                epoch, block = epoch + 1, 0
            blocks.append(self.block(epoch, group, block))
            block += 1
        return blocks

    def _locate(self, group: int, position: int) -> tuple[int, int]:
        """The epoch that a group's position falls in, and the place in it."""
        if self._groups == 1:
            return divmod(position, int(self.sizes.sum()))
        while int(self._before[-1][group]) <= position:
            dealt = self._deals[len(self._before) - 1]
            lengths = [int(self.sizes[dealt[number :: self._groups]].sum()) for number in range(self._groups)]
            self._before.append(self._before[-1] + np.array(lengths))
        low, high = 0, len(self._before) - 1  # before[low] <= position < before[high]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if int(self._before[middle][group]) <= position else (low, middle)
        return low, position - int(self._before[low][group])

    def _deal(self, epoch: int) -> NDArray[np.int32]:
        """All shards of an epoch as shuffled; group g has each `groups`-th from the g-th on."""
        return generator(self._seed, "shards", self._dataset, epoch).permutation(self._filled)

    def _open_epoch(self, which: tuple[int, int]) -> _Epoch:
        epoch, group = which
        shards = self._deals[epoch][group :: self._groups]
        ends = np.cumsum(self.sizes[shards])
        last = np.minimum(np.arange(self.block_shards, len(shards) + self.block_shards, self.block_shards), len(shards))
        return _Epoch(shards, ends[last - 1])

    def _permute(self, which: tuple[int, int, int]) -> NDArray[np.int32]:
        epoch, group, block = which
        ends = self.epoch(epoch, group).block_ends
        size = int(ends[block]) - (int(ends[block - 1]) if block else 0)
        rows = np.arange(size, dtype=np.int32)
        return generator(self._seed, "examples", self._dataset, epoch, group, block).permutation(rows)


class Order:
    """The slots of every step.

    Args:
        sizes: per dataset the examples of each shard, [shards].
        weights: per dataset how much of the mixture it makes; only proportions matter.
        seed: `run.seed`.
        groups: `data.groups`; every step takes the same number of examples from each.
        batch_size: examples of a global batch.
        block_shards: shards of a block. More spread neighbours wider and keep more shards open at once.
    Raises:
        ConfigError: `batch_size` does not divide by `groups`, a dataset has fewer shards than `groups`, or a weight
            is not positive.
        DataError: a dataset has no example.
    """

    def __init__(
        self,
        sizes: Sequence[NDArray[np.int64]],
        weights: Sequence[float] | None = None,
        *,
        seed: int,
        batch_size: int,
        groups: int = 1,
        block_shards: int = 8,
    ) -> None:
        if batch_size < 1 or groups < 1 or block_shards < 1:
            raise ConfigError("batch.size, data.groups and data.block_shards must be at least 1")
        if batch_size % groups:
            raise ConfigError(
                f"batch.size ({batch_size}) does not divide by data.groups ({groups}), and every group gives the same "
                "number of examples: change one of them"
            )
        if weights is not None and len(weights) != len(sizes):
            raise ConfigError(f"data.train: {len(weights)} weights for {len(sizes)} datasets")
        for number, examples in enumerate(sizes):
            if not np.asarray(examples).sum():
                raise DataError(f"dataset {number} of data.train has no example: check the directory and data.texts")
        self.seed, self.batch_size, self.groups = seed, batch_size, groups
        self.shards_per_block = block_shards
        self.streams = [
            Stream(
                np.asarray(examples, np.int64),
                seed=seed,
                dataset=number,
                groups=groups,
                block_shards=block_shards,
            )
            for number, examples in enumerate(sizes)
        ]
        weights = weights if weights is not None else [1.0] * len(sizes)
        self._mixtures = [Mixture(weights, seed=seed, group=group) for group in range(groups)]

    @property
    def examples(self) -> int:
        """Examples of one epoch of all datasets."""
        return sum(int(stream.sizes.sum()) for stream in self.streams)

    def slots(self, step: int) -> list[Slot]:
        """The global batch of a step, group after group."""
        return [slot for group in range(self.groups) for slot in self.group_slots(step, group)]

    def group_slots(self, step: int, group: int) -> list[Slot]:
        """The slots that one group gives to a step."""
        share = self.batch_size // self.groups
        first = step * share
        mixture = self._mixtures[group]
        drawn = mixture.datasets(first, share)
        starts = mixture.counts(first)
        sources = [
            stream.take(group, starts[number], int((drawn == number).sum()))
            for number, stream in enumerate(self.streams)
        ]
        slots = []
        for place, dataset in enumerate(drawn.tolist()):
            epoch, block, example = next(sources[dataset])
            slots.append(Slot(step, group * share + place, dataset, epoch, block, group, example))
        return slots

    def blocks_from(self, step: int, group: int, dataset: int, count: int) -> list[tuple[int, ...]]:
        """The shards of the block of a dataset that a group reads from at a step, and of the blocks after it."""
        start = self._mixtures[group].counts(step * (self.batch_size // self.groups))[dataset]
        return self.streams[dataset].blocks_from(group, start, count)

    def block_shards(self, slot: Slot) -> tuple[int, ...]:
        """The shards of the block that a slot's example lies in, in the order of the block's tables."""
        return self.streams[slot.dataset].block(slot.epoch, slot.group, slot.block)

    def identity(self, slot: Slot) -> tuple[int, int]:
        """(shard, example in the shard) of a slot: the same however many groups, blocks or ranks there are."""
        example = slot.example
        sizes = self.streams[slot.dataset].sizes
        for shard in self.block_shards(slot):
            if example < sizes[shard]:
                return shard, example
            example -= int(sizes[shard])
        raise ValueError(f"{slot} lies outside its block")

    def neighbours(self, slot: Slot) -> Iterator[int]:
        """The other examples of the slot's block, in an order drawn for this example: who may stand in for it."""
        sizes = self.streams[slot.dataset].sizes
        examples = int(sizes[list(self.block_shards(slot))].sum())
        rng = generator(self.seed, "neighbours", slot.dataset, slot.epoch, *self.identity(slot))
        yield from (example for example in rng.permutation(examples).tolist() if example != slot.example)
