"""How a process on a CPU gives memory back."""

from __future__ import annotations

import ctypes

LARGE = 30_000_000
"""Parameters from which on a model is large here."""
_MMAP_THRESHOLD, _BLOCK = -3, 1 << 20


def return_freed_memory(parameters: int) -> bool:
    """Have blocks above 1 MiB returned to the system as soon as they are free, if the model is large.

    glibc otherwise keeps blocks of up to 32 MiB, in pieces that fit nothing else: a base model's peak was 3831 MB with
    its habit and 2908 MB without, for 2 % more CPU time (2048 tokens, bf16, ZeRO-2). A tiny model's step, which is all
    small blocks, took half as long again, and its memory does not matter.

    Returns:
        Whether it is so; False also where the C library is another.
    """
    if parameters < LARGE:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _BLOCK))
    except (AttributeError, OSError):
        return False
