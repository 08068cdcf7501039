"""`vlp plan`: what a run needs before it is launched: memory, steps, operations, time, network, data.

Everything is worked out from the config, on the meta device: no GPU, no weights and, where they are missing, no data.
"""
