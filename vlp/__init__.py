"""vlp: vision-language pre-training. Single- and dual-stream encoders, one config vocabulary, DeepSpeed.

The door is `vlp.cli` (the `vlp` command). Importing this package imports nothing heavy.
"""

__version__ = "0.1.0"
