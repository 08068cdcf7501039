"""Checkpoints that authors published, into our models and back. The only place that knows families by name:
a file each, with the table of names and what the authors' config says in ours.
"""
