"""Freed memory goes back to the system, or stays with the process, as it is told."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlp.freed import give_back


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


KEEPING = """
import os, resource
from pathlib import Path
from vlp.freed import keep

def resident():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")

{first}
block = bytearray(b"x") * 100_000_000
del block
before, faults = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = bytearray(b"x") * 100_000_000
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")
def test_a_large_block_that_is_freed_stays_where_it_was() -> None:
    (without, faults), (kept, few) = (_of_its_own(first) for first in ("", "keep()"))
    assert kept - without > 90_000_000
    assert few < faults / 10  # the second block takes the pages of the first


def _of_its_own(first: str) -> tuple[int, int]:
    """Bytes that a process holds when it has freed a block, and its page faults as it takes another such block."""
    code = KEEPING.replace("{first}", first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    held, faults = map(int, done.stdout.split())
    return held, faults
