"""A step out of its number: slots from the order, pairs from the task, the split by tokens, samples read, packed.

Everything here is a pure function of the step's number, so a worker keeps no state but its caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlp.data.balance import parties, split
from vlp.data.dataset import Dataset
from vlp.data.index import Block
from vlp.data.order import Order
from vlp.data.recent import Recent
from vlp.data.samples import Fault
from vlp.data.shards import BadSample
from vlp.errors import DataError
from vlp.seeds import generator
from vlp.types import Batch, Example, Pair, Sample, Slot, Step

ImageTokens = Callable[[int], int]
"""Image tokens that the model makes of a sample with so many regions (`vlp.data.image`: `.tokens`)."""


class Preparer(Protocol):
    """What a task does to its data; pure functions of their arguments, run in loader workers."""

    @property
    def wants_image(self) -> bool:
        """Whether `example` needs the photo's bytes."""

    @property
    def wants_regions(self) -> bool:
        """Whether `example` needs the regions."""

    def pairs(self, slot: Slot, block: Block, rng: np.random.Generator) -> tuple[Pair, ...]:
        """The pairs of one slot, at least one; they stay in one micro-batch, in this order."""

    def example(
        self,
        slot: Slot,
        pair: Pair,
        image: Sample,
        text: Sample,
        text_number: int,
        rng: np.random.Generator,
        step: int,
    ) -> Example:
        """One pair, prepared for the model. An empty `Example.id` is filled in by the caller.

        Raises:
            Fault: the image or the text cannot be used; another example takes the slot.
        """

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        """A micro-batch from the examples of each slot; no slots at all give zero rows."""


class Places(Protocol):
    """Where slots lie: an `Order`, or the plain sequence of an evaluation."""

    @property
    def seed(self) -> int: ...

    def block_shards(self, slot: Slot) -> tuple[int, ...]: ...

    def identity(self, slot: Slot) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class OpenBlock:
    tables: Block
    cut_E: NDArray[np.bool_]
    """True where the text is longer than the model takes."""
    image_tokens_S: NDArray[np.int64]


class SlotReader:
    """Slots into examples."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        places: Places,
        preparer: Preparer,
        image_tokens: ImageTokens,
        open_blocks: int,
    ) -> None:
        self._datasets = datasets
        self._places = places
        self._preparer = preparer
        self._image_tokens = image_tokens
        self._blocks = Recent(self._open, open_blocks)

    def block(self, slot: Slot) -> OpenBlock:
        return self._blocks[slot.dataset, self._places.block_shards(slot)]

    def pairs(self, slot: Slot) -> tuple[Pair, ...]:
        """The pairs that the task draws for a slot."""
        return self._preparer.pairs(slot, self.block(slot).tables, self._generator("pairs", slot))

    def tokens(self, slot: Slot, pairs: Sequence[Pair]) -> int:
        """Tokens of a slot's pairs, known before anything is read."""
        block = self.block(slot)
        return sum(int(block.tables.tokens_E[pair.text] + block.image_tokens_S[pair.image]) for pair in pairs)

    def cut_texts(self, slot: Slot, pairs: Sequence[Pair]) -> int:
        """Texts among the pairs' that were longer than the model's limit."""
        return sum(bool(self.block(slot).cut_E[pair.text]) for pair in pairs)

    def examples(self, slot: Slot, pairs: Sequence[Pair], step: int) -> list[Example]:
        """Read and prepare the pairs of a slot.

        Raises:
            BadSample: a sample cannot be read or used.
        """
        tables = self.block(slot).tables
        dataset = self._datasets[slot.dataset]
        texts = {int(tables.sample_E[pair.text]) for pair in pairs}
        samples = self._read(slot, texts, {pair.image for pair in pairs})
        examples = []
        for number, pair in enumerate(pairs):
            text = int(tables.sample_E[pair.text])
            text_number = int(tables.text_E[pair.text])
            rng = self._generator("example", slot, number)
            try:
                example = self._preparer.example(slot, pair, samples[pair.image], samples[text], text_number, rng, step)
            except Fault as fault:
                name = dataset.shard_name(int(tables.shard_S[pair.image]))
                raise BadSample(name, samples[pair.image].key, fault.member, fault.reason) from fault
            if not example.id:
                name = dataset.shard_name(int(tables.shard_S[text])).removesuffix(".tar")
                example.id = f"{name}/{samples[text].key}#{text_number}"
            examples.append(example)
        return examples

    def _read(self, slot: Slot, texts: set[int], images: set[int]) -> dict[int, Sample]:
        """The samples of these rows of the block's tables, each read once with the members it is needed for."""
        tables = self.block(slot).tables
        dataset = self._datasets[slot.dataset]
        return {
            row: dataset.read(
                int(tables.shard_S[row]),
                int(tables.row_S[row]),
                image=row in images and self._preparer.wants_image,
                regions=row in images and self._preparer.wants_regions,
                texts=row in texts,
            )
            for row in sorted(texts | images)
        }

    def _generator(self, purpose: str, slot: Slot, *more: int) -> np.random.Generator:
        """Seeded by what the example is, not by where it stands: groups, ranks and batch size do not move a mask."""
        return generator(self._places.seed, purpose, slot.dataset, slot.epoch, *self._places.identity(slot), *more)

    def _open(self, which: tuple[int, tuple[int, ...]]) -> OpenBlock:
        dataset, shards = which
        tables, cut_E = self._datasets[dataset].open_block(shards)
        return OpenBlock(tables, cut_E, image_tokens(tables, self._preparer, self._image_tokens))


def image_tokens(tables: Block, preparer: Preparer, count: ImageTokens) -> NDArray[np.int64]:
    """Image tokens of each sample of a block, [S]; zero where the task takes no image or the sample has none."""
    if preparer.wants_image:
        return np.where(tables.has_image_S, count(0), 0).astype(np.int64)
    if not preparer.wants_regions:
        return np.zeros(len(tables.regions_S), np.int64)
    found, which_S = np.unique(tables.regions_S, return_inverse=True)
    return np.array([count(int(regions)) if regions else 0 for regions in found], np.int64)[which_S]


@dataclass(frozen=True, slots=True)
class Plan:
    """Who does what in a step; the same on every rank."""

    slots: list[Slot]
    pairs: list[tuple[Pair, ...]]
    tokens: list[int]
    micro_batches: list[list[list[int]]]
    """Per rank, per micro-batch, places in `slots`."""


class StepMaker:
    """Makes the steps of one rank.

    Args:
        datasets: in the order's numbering.
        micro_tokens: `batch.micro_tokens`, most tokens of a micro-batch.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        order: Order,
        preparer: Preparer,
        *,
        image_tokens: ImageTokens,
        micro_tokens: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._order = order
        self._preparer = preparer
        self._micro_tokens = micro_tokens
        self._rank, self._world_size = rank, world_size
        # Each group can be in two blocks of each dataset at once, the old and the new.
        self._reader = SlotReader(datasets, order, preparer, image_tokens, 2 * len(datasets) * order.groups)
        # This rank reads from its own groups' blocks only; the others' tables are needed once, to open their blocks.
        own_groups = order.groups // parties(world_size, order.groups)
        for dataset in datasets:
            dataset.keep(2 * order.shards_per_block * own_groups)

    def plan(self, step: int) -> Plan:
        """The split of a step, from index and order alone."""
        slots = self._order.slots(step)
        pairs = [self._reader.pairs(slot) for slot in slots]
        tokens = [self._reader.tokens(slot, drawn) for slot, drawn in zip(slots, pairs, strict=True)]
        return Plan(slots, pairs, tokens, split(tokens, self._world_size, self._order.groups, self._micro_tokens))

    def make(self, step: int) -> Step:
        """The step of this rank.

        Raises:
            DataError: no example of a block can be read.
        """
        plan = self.plan(step)
        result = Step(step, [], 0)
        for places in plan.micro_batches[self._rank]:
            examples = [self._fill(plan, place, result) for place in places]
            result.micro_batches.append(self._preparer.collate(examples, step))
            result.examples += sum(len(group) for group in examples)
        return result

    def _fill(self, plan: Plan, place: int, result: Step) -> list[Example]:
        """The examples of a slot, or of the neighbour that takes its place."""
        errors: list[BadSample] = []
        for slot, pairs in self._candidates(plan, place):
            try:
                examples = self._reader.examples(slot, pairs, result.number)
            except BadSample as error:
                errors.append(error)
                result.quarantined.append(record(error))
                continue
            result.cut_texts += self._reader.cut_texts(slot, pairs)
            return examples
        raise DataError(f"none of the {len(errors)} examples of a block can be used; the first: {errors[0]}")

    def _candidates(self, plan: Plan, place: int) -> Iterator[tuple[Slot, tuple[Pair, ...]]]:
        """The slot itself, then neighbours that are not longer (the split stays true), then, at worst, longer ones."""
        yield plan.slots[place], plan.pairs[place]
        longer = []
        for example in self._order.neighbours(plan.slots[place]):
            neighbour = replace(plan.slots[place], example=example)
            pairs = self._reader.pairs(neighbour)
            if self._reader.tokens(neighbour, pairs) <= plan.tokens[place]:
                yield neighbour, pairs
            else:
                longer.append((neighbour, pairs))
        yield from longer


def record(error: BadSample) -> dict[str, str]:
    """What quarantine keeps of a bad sample."""
    return {"shard": error.shard, "key": error.key, "member": error.member, "error": error.reason}
