"""Tasks: examples in, losses and metrics out. One file each; `registry.py` lists them.

A task decides which pairs a slot of the order gives, what is hidden of each, which objectives and heads learn from it,
and how the result is judged.
"""
