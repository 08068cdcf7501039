"""From tar shards to packed batches: index, order, reading, preparing, packing, the loader.

The order and the split of a step into micro-batches are pure functions; workers keep no state.
"""
