"""vlp-data: makes shards and indexes from the datasets of others, and looks into them.

The door is `data_tools.cli` (the `vlp-data` command). Nothing in `vlp` imports this package.
"""
