"""What a rank reads next from remote datasets, worked out from the order, so that it is fetched before it is needed."""

from __future__ import annotations

from collections.abc import Sequence

from vlp.data.balance import parties
from vlp.data.dataset import Dataset
from vlp.data.order import Order
from vlp.data.remote import RemoteIndex
from vlp.errors import ConfigError

_BLOCKS = 2
"""The block that is read, and the next."""


class LookAhead:
    """Asks remote datasets for the blocks that a rank reads from, and for the next ones. Does nothing for local ones.

    The tables of all groups are asked for, since every rank plans the whole step, but only the own groups' shards.

    Args:
        datasets: in the order's numbering.
    Raises:
        ConfigError: a cache cannot hold the shards of the open blocks, or shards of other groups would be needed to
            count their tokens.
    """

    def __init__(self, datasets: Sequence[Dataset], order: Order, rank: int, world_size: int) -> None:
        self._order = order
        self._remote = {number: dataset.remote for number, dataset in enumerate(datasets) if dataset.remote is not None}
        self._last: dict[int, list[list[tuple[int, ...]]]] = {}
        sets = parties(world_size, order.groups)
        groups = order.groups // sets
        first = rank // (world_size // sets) * groups
        self._own = range(first, first + groups)
        for number, index in self._remote.items():
            index.check_room(order.shards_per_block * groups)
            if sets > 1 and not datasets[number].lengths.stored:
                raise ConfigError(
                    f"data.groups: with {order.groups} groups a node fetches its own shards only, so the token lengths "
                    f"of {index.directory} must lie beside its index: make them with `vlp-data index DIR --tokenizer "
                    "TOKENIZER` and upload DIR/index again, or take one group"
                )

    def at(self, step: int) -> None:
        """Ask for what the step and those after it read, where that is not what was asked for last."""
        for number, index in self._remote.items():
            blocks = [self._order.blocks_from(step, group, number, _BLOCKS) for group in range(self._order.groups)]
            if blocks != self._last.get(number):
                self._last[number] = blocks
                self._ask(index, blocks)

    def _ask(self, index: RemoteIndex, blocks: list[list[tuple[int, ...]]]) -> None:
        others = [group for group in range(len(blocks)) if group not in self._own]
        now, then = ([shard for group in self._own for shard in blocks[group][place]] for place in range(_BLOCKS))
        tables = [shard for place in range(_BLOCKS) for group in others for shard in blocks[group][place]]
        index.ahead(now, then, tables)
