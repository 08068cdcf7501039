"""Which cores a rank gets, of those that this process may use: its share of a NUMA node where there are several.

A rank and its loader workers, which inherit its cores, then find their memory on their own node: what a process writes
first is put on the node that it runs on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True)
class Share:
    """What one rank gets."""

    threads: int
    """Of its own for computing: all ranks with as many threads as there are cores would slow every one of them."""
    cores: frozenset[int] | None
    """That it is bound to; None for those that there are."""


def share_of(rank: int, ranks: int) -> Share:
    """The share of one of the ranks of this machine."""
    return divided(rank, ranks, allowed_cores(), nodes_of(NODES))


def allowed_cores() -> frozenset[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def divided(rank: int, ranks: int, allowed: frozenset[int], nodes: Sequence[frozenset[int]]) -> Share:
    """Neighbouring ranks on one node, as neighbouring GPUs are. With fewer ranks than nodes none is bound: it would
    lose cores.

    Args:
        nodes: the cores of each NUMA node.
    """
    own = [node & allowed for node in nodes if node & allowed]
    if len(own) < 2 or ranks < len(own):
        return Share(max(1, len(allowed) // ranks), None)
    places = [each * len(own) // ranks for each in range(ranks)]
    cores = own[places[rank]]
    return Share(max(1, len(cores) // places.count(places[rank])), cores)


def nodes_of(folder: Path) -> list[frozenset[int]]:
    """The cores of each NUMA node (Linux; none elsewhere)."""
    return [
        cores_in(path.read_text(encoding="ascii")) for path in sorted(folder.glob("node[0-9]*/cpulist"), key=_number)
    ]


def cores_in(text: str) -> frozenset[int]:
    """The cores that `0-3,8` lists."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def _number(path: Path) -> int:
    return int(path.parent.name.removeprefix("node"))
