"""A step out of its number: slots from the order, pairs from the task, the split by tokens, samples read, packed.

Everything here is a pure function of the step's number, so a worker keeps no state but its caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vlp.data.ahead import LookAhead
from vlp.data.augment import AugmentConfig
from vlp.data.balance import parties, split
from vlp.data.dataset import Dataset
from vlp.data.order import Order
from vlp.data.shards import BadSample
from vlp.data.slots import ImageTokens, Preparer, ReadPair, SlotReader
from vlp.errors import DataError
from vlp.types import Example, Pair, Slot, Step


@dataclass(frozen=True, slots=True)
class Plan:
    """Who does what in a step; the same on every rank."""

    slots: list[Slot]
    pairs: list[tuple[Pair, ...]]
    lengths: list[tuple[int, int]]
    """Of each slot: its tokens, and its texts that are cut at the model's limit."""
    micro_batches: list[list[list[int]]]
    """Per rank, per micro-batch, places in `slots`."""


class StepMaker:
    """Makes the steps of one rank.

    Args:
        datasets: in the order's numbering.
        micro_tokens: `batch.micro_tokens`, most tokens of a micro-batch.
        augment: how to look at images; None shows them as they are.
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
        augment: AugmentConfig | None = None,
    ) -> None:
        self._order = order
        self._preparer = preparer
        self._micro_tokens = micro_tokens
        self._rank, self._world_size = rank, world_size
        # Each group can be in two blocks of each dataset at once, the old and the new.
        self._reader = SlotReader(datasets, order, preparer, image_tokens, 2 * len(datasets) * order.groups, augment)
        # This rank reads from its own groups' blocks only; the others' tables are needed once, to open their blocks.
        own_groups = order.groups // parties(world_size, order.groups)
        for dataset in datasets:
            dataset.keep(2 * order.shards_per_block * own_groups)
        self._ahead = LookAhead(datasets, order, rank, world_size)

    def plan(self, step: int) -> Plan:
        """The split of a step, from index and order alone."""
        slots = self._order.slots(step)
        pairs = [self._reader.pairs(slot) for slot in slots]
        lengths = [self._reader.lengths(slot, drawn) for slot, drawn in zip(slots, pairs, strict=True)]
        tokens = [tokens for tokens, _ in lengths]
        return Plan(slots, pairs, lengths, split(tokens, self._world_size, self._order.groups, self._micro_tokens))

    def make(self, step: int) -> Step:
        """The step of this rank.

        An index that cannot be used, or a block of which nothing can be read, gives a step with a `failure` and not an
        error: an error on one rank would leave the others waiting for it.
        """
        try:
            return self._made(step)
        except DataError as error:
            return Step(step, [], 0, failure=str(error))

    def _made(self, step: int) -> Step:
        self._ahead.at(step)
        plan = self.plan(step)
        result = Step(step, [], 0)
        for places in plan.micro_batches[self._rank]:
            examples = self._examples(plan, places, result)
            result.micro_batches.append(self._preparer.collate(examples, step))
            result.examples += sum(len(group) for group in examples)
        return result

    def _examples(self, plan: Plan, places: Sequence[int], result: Step) -> list[list[Example]]:
        """The examples of some slots, or of the neighbours that take their places.

        First all samples are read, then all images decoded, then all else is done: a processor that has decoded an
        image must fetch the code of other things anew, and in turn that costs twice as much as those things themselves.
        """
        examples, used = [], []
        reads = [(place, self._read(plan, place)) for place in places]
        for place, read in [(place, self._shown(plan, place, read)) for place, read in reads]:
            try:
                if isinstance(read, BadSample):
                    raise read
                examples.append(self._reader.prepare(plan.slots[place], read, result.number))
                used.append(place)
            except BadSample as error:
                examples.append(self._replacement(plan, place, error, result))
        result.cut_texts += sum(plan.lengths[place][1] for place in used)
        return examples

    def _read(self, plan: Plan, place: int) -> list[ReadPair] | BadSample:
        try:
            return self._reader.read(plan.slots[place], plan.pairs[place])
        except BadSample as error:
            return error

    def _shown(self, plan: Plan, place: int, read: list[ReadPair] | BadSample) -> list[ReadPair] | BadSample:
        if isinstance(read, BadSample):
            return read
        try:
            self._reader.show(plan.slots[place], read)
        except BadSample as error:
            return error
        return read

    def _replacement(self, plan: Plan, place: int, first: BadSample, result: Step) -> list[Example]:
        """The examples of the neighbour that takes the place of a slot which cannot be used."""
        directory = self._reader.directory(plan.slots[place])
        result.quarantined.append(record(first, directory))
        gone = {first.shard} if first.whole_shard else set()
        for slot, pairs in self._neighbours(plan, place):
            if gone and not gone.isdisjoint(self._reader.shards(slot, pairs)):
                continue
            try:
                examples = self._reader.examples(slot, pairs, result.number)
            except BadSample as error:
                gone |= {error.shard} if error.whole_shard else set()
                result.quarantined.append(record(error, directory))
                continue
            result.cut_texts += self._reader.lengths(slot, pairs)[1]
            return examples
        raise DataError(
            f"{directory}: no example of a block of shards can be used ({first}); "
            f"find and mend all damage with `vlp-data verify {directory} --repair OUT`"
        )

    def _neighbours(self, plan: Plan, place: int) -> Iterator[tuple[Slot, tuple[Pair, ...]]]:
        """Who may take a slot's place: those that are not longer (the split stays true), at worst longer ones."""
        longer = []
        for example in self._order.neighbours(plan.slots[place]):
            neighbour = replace(plan.slots[place], example=example)
            pairs = self._reader.pairs(neighbour)
            if self._reader.lengths(neighbour, pairs)[0] <= plan.lengths[place][0]:
                yield neighbour, pairs
            else:
                longer.append((neighbour, pairs))
        yield from longer


def record(error: BadSample, directory: str) -> dict[str, str]:
    """What quarantine keeps of a bad sample of a data directory."""
    place = {"data": directory, "shard": error.shard, "key": error.key}
    return {**place, "member": error.member, "error": error.reason}
