"""Freed memory goes back to the system when it is told to."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from vlp.train.freed import give_back


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="malloc is not glibc's")
def test_what_lies_free_between_blocks_in_use_is_given_back() -> None:
    blocks = [bytearray(b"x") * 100_000 for _ in range(1000)]  # small enough for malloc's heap
    kept = blocks[::10]
    del blocks
    before = resident()
    give_back()
    assert before - resident() > 60_000_000
    assert all(block[-1] == ord("x") for block in kept)
