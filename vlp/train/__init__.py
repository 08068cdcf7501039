"""Training: the loop, the DeepSpeed engine, checkpoints by parameter name, schedules, logs.

Knows a task only as a module from Batch to Losses; knows nothing of configs of whole runs.
"""
