"""The two loaders: steps of training, and every example of a dataset once for evaluation.

Both give each rank its part of the same whole, and every rank equally many micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vlp.data.augment import AugmentConfig
from vlp.data.dataset import Dataset
from vlp.data.order import Order
from vlp.data.shards import BadSample
from vlp.data.slots import ImageTokens, Preparer, SlotReader, image_tokens
from vlp.data.steps import StepMaker, record
from vlp.data.workers import in_order
from vlp.types import Slot, Step

__all__ = ["EvaluationLoader", "ImageTokens", "Preparer", "StepLoader"]


class StepLoader:
    """Iterates the steps `first_step` to `last_step - 1` of one rank.

    Its whole state is the number of the step: to continue a run, give the number of steps done as `first_step`.

    Args:
        datasets: in the order's numbering.
        micro_tokens: `batch.micro_tokens`, most tokens of a micro-batch (a longer slot stands alone).
        workers: processes that make steps ahead; 0 makes each when it is asked for.
        pin_memory: put tensors in page-locked memory, for a GPU.
        augment: `data.augment`.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        order: Order,
        preparer: Preparer,
        *,
        image_tokens: ImageTokens,
        micro_tokens: int,
        first_step: int,
        last_step: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        augment: AugmentConfig | None = None,
    ) -> None:
        self.maker = StepMaker(
            datasets,
            order,
            preparer,
            image_tokens=image_tokens,
            micro_tokens=micro_tokens,
            rank=rank,
            world_size=world_size,
            augment=augment,
        )
        self._steps = range(first_step, last_step)
        self._workers, self._pin_memory = workers, pin_memory

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Step]:
        return in_order(self.maker.make, self._steps, workers=self._workers, pin_memory=self._pin_memory)


class EvaluationLoader:
    """Every example of a dataset once, in index order: steps of one micro-batch, the same number on every rank.

    Ranks get contiguous shares of equal tokens; a rank with fewer batches ends with empty ones. A bad sample is left
    out and recorded in `Step.quarantined`. Pairs are drawn with epoch 0; a block is one shard. Lengths are those of
    each example's own text and image: a task that draws more pairs per slot makes its batches that much longer.

    Args:
        seed: what pairs and hidden tokens are drawn by.
        limit: take only the first so many examples; None takes all.
    """

    def __init__(
        self,
        dataset: Dataset,
        preparer: Preparer,
        *,
        image_tokens: ImageTokens,
        micro_tokens: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        limit: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.seed = seed
        self._preparer = preparer
        self._workers, self._pin_memory = workers, pin_memory
        self._ends = np.cumsum(dataset.examples_S)
        self._reader = SlotReader([dataset], self, preparer, image_tokens, open_blocks=2)
        self.examples = min(int(self._ends[-1]), limit if limit is not None else int(self._ends[-1]))
        """Examples over all ranks, bad ones included."""
        ranges = self._cut(dataset, image_tokens, micro_tokens, world_size)
        self._batches = max(len(share) for share in ranges)
        self._ranges = ranges[rank]

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Step]:
        return in_order(self._make, range(self._batches), workers=self._workers, pin_memory=self._pin_memory)

    def block_shards(self, slot: Slot) -> tuple[int, ...]:
        return (slot.block,)

    def _make(self, number: int) -> Step:
        result = Step(number, [], 0)
        examples = []
        for place in range(*self._ranges[number]) if number < len(self._ranges) else ():
            shard = int(np.searchsorted(self._ends, place, side="right"))
            row = place - (int(self._ends[shard - 1]) if shard else 0)
            slot = Slot(number, place, dataset=0, epoch=0, block=shard, group=0, example=row)
            pairs = self._reader.pairs(slot)
            try:
                examples.append(self._reader.examples(slot, pairs, number))
            except BadSample as error:
                result.quarantined.append(record(error, self._reader.directory(slot)))
                continue
            result.examples += len(pairs)
            result.cut_texts += self._reader.lengths(slot, pairs)[1]
        result.micro_batches.append(self._preparer.collate(examples, number))
        return result

    def _cut(self, dataset: Dataset, count: ImageTokens, micro_tokens: int, ranks: int) -> list[list[tuple[int, int]]]:
        """Per rank, the first example and the end of each batch. Walks the index shard by shard, twice."""
        total = sum(int(tokens_E.sum()) for tokens_E in self._lengths(dataset, count))
        result: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
        used = [0] * ranks
        before, place = 0, 0
        for tokens_E in self._lengths(dataset, count):
            # The rank whose share of the tokens an example begins in.
            rank_E = (before + np.cumsum(tokens_E) - tokens_E) * ranks // max(1, total)
            for tokens, rank in zip(tokens_E.tolist(), rank_E.tolist(), strict=True):
                share = result[rank]
                if share and used[rank] + tokens <= micro_tokens:
                    share[-1] = (share[-1][0], place + 1)
                    used[rank] += tokens
                else:
                    share.append((place, place + 1))
                    used[rank] = tokens
                place += 1
            before += int(tokens_E.sum())
        return result

    def _lengths(self, dataset: Dataset, count: ImageTokens) -> Iterator[NDArray[np.int64]]:
        """Tokens of each example's own pair, shard by shard."""
        left = self.examples
        for shard, examples in enumerate(dataset.examples_S.tolist()):
            if not left:
                return
            if examples:
                tables, _ = dataset.open_block((shard,))
                tokens_E = tables.tokens_E + image_tokens(tables, self._preparer, count)[tables.sample_E]
                yield tokens_E[:left].astype(np.int64)
                left -= min(left, examples)
