"""Objectives: what to hide of an example, and the loss of guessing it. One file each.

To add one: a file with a config and a class, and a line in `registry.py`.
"""
