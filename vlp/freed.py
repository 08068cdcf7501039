"""Memory that a process has freed but still holds: kept for the next batch, or given back to the system.

Both are of glibc's malloc, and do nothing where malloc is another.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""What glibc calls them (malloc.h)."""
_MORE = 64 << 20
"""Bytes by which the heap grows at least."""


def keep() -> None:
    """From now on, keep all freed memory.

    malloc takes blocks above 32 MB from the system and gives them back each time: 2731 tokens of 3072 numbers. A batch
    has hundreds, whose pages the system must find and clear anew: 7 % of a bf16 step of a two-stream base model (32
    examples, two cores). It is for commands that run the same over and over, not for a process of others.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for what, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _MORE)):
            mallopt(what, value)


def give_back() -> None:
    """Give the system back what malloc keeps of freed memory.

    Where weights are gathered and let go among activations (ZeRO stage 3), what comes back does not fit the gaps that
    are left, and a process would grow with every step: a model of base size in fp32 on two ranks from 2639 MB at step 2
    to 2912 at step 8.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
