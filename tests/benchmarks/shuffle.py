"""How well block shuffle shuffles, against a full shuffle, by `data.block_shards`.

    make bench PART=shuffle

Examples that lie side by side in a shard (captions of one photo, photos of one source) should come far apart. Measured
over one epoch of 1,000 shards of 1,000 examples, batches of 1,024:
  distance   of such neighbours in the order, median, as a share of a full shuffle's (which is 0.293 of the epoch);
  together   how often such neighbours stand in one batch, as a multiple of a full shuffle's;
  sources    shards that a batch is drawn from, as a share of a full shuffle's (641 of 1,000 shards).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.results import of_rounds, report
from vlp.data.order import Order

SHARDS, EXAMPLES, BATCH = 1000, 1000, 1024
BLOCKS = (1, 2, 4, 8, 16, 32, 64, 128, 1000)


def places(block_shards: int) -> NDArray[np.int64]:
    """Where in the order of the first epoch each example stands, [shards * examples in the order of the shards]."""
    order = Order([np.full(SHARDS, EXAMPLES)], seed=1, batch_size=EXAMPLES, block_shards=block_shards)
    result = np.empty(SHARDS * EXAMPLES, np.int64)
    stream = order.streams[0]
    start = 0
    for block in range(-(-SHARDS // block_shards)):
        shards_B = np.array(stream.block(0, 0, block))
        drawn = np.array([example for _, _, example in stream.take(0, start, EXAMPLES * len(shards_B))])
        result[shards_B[drawn // EXAMPLES] * EXAMPLES + drawn % EXAMPLES] = start + np.arange(len(drawn))
        start += len(drawn)
    return result


def measures(place: NDArray[np.int64]) -> dict[str, float]:
    """Of an epoch's order."""
    side_by_side = np.arange(len(place) - 1) % EXAMPLES != EXAMPLES - 1
    distance = np.abs(np.diff(place))[side_by_side]
    batch = place // BATCH
    together = float((np.diff(batch)[side_by_side] == 0).mean())
    shard = np.repeat(np.arange(SHARDS), EXAMPLES)
    whole = len(place) // BATCH
    pairs = np.unique(batch * SHARDS + shard)
    sources = np.bincount(pairs // SHARDS)[:whole]
    return {
        "distance": float(np.median(distance)) / len(place),
        "together": together,
        "sources": float(sources.mean()),
    }


def main() -> None:
    random = np.random.default_rng(0)
    full = measures(random.permutation(SHARDS * EXAMPLES))
    found = {blocks: measures(places(blocks)) for blocks in BLOCKS}
    results = [
        of_rounds(
            f"shuffle/block_shards_{blocks}",
            [one["distance"] / full["distance"]],
            against="distance of neighbours, as a share of a full shuffle's",
            figures={
                "together, times a full shuffle's": one["together"] / full["together"],
                "sources, share of a full shuffle's": one["sources"] / full["sources"],
            },
        )
        for blocks, one in found.items()
    ]
    report("shuffle", __doc__, results)


if __name__ == "__main__":
    main()
