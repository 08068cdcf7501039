"""The split of a step: which slot goes to which rank and micro-batch, from token counts alone.

Pure and deterministic, so every rank works out the whole split for itself and none has to be told.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

Split = list[list[list[int]]]
"""Per rank, per micro-batch, the places of its slots in the global batch, ascending."""


def parties(ranks: int, groups: int) -> int:
    """How many sets of ranks read disjoint sets of groups.

    As many as divide both: consecutive ranks share consecutive groups, so with groups = nodes each node reads its own.
    """
    return math.gcd(ranks, groups)


def split(tokens: Sequence[int], ranks: int, groups: int, micro_tokens: int) -> Split:
    """Deal the slots of a global batch to ranks and micro-batches.

    Tokens are balanced among the ranks that share groups; a rank's slots are then cut by length into micro-batches of
    about equal tokens. Every rank gets the same number of micro-batches: the fewest that keep each within
    `micro_tokens`; some may be empty. A slot that is longer by itself stands alone.

    Args:
        tokens: of each slot, group after group, equally many slots per group.
        micro_tokens: most tokens of a micro-batch.
    """
    sets = parties(ranks, groups)
    slots, members = len(tokens) // sets, ranks // sets
    shares = [
        [first + place for place in share]
        for first in range(0, slots * sets, slots)
        for share in deal(tokens[first : first + slots], members)
    ]
    # A slot that is longer by itself fills one micro-batch, not several.
    filled = [sum(min(tokens[place], micro_tokens) for place in share) for share in shares]
    count = max(1, math.ceil(max(filled) / micro_tokens))
    while True:
        cut = [_cut(share, tokens, count, micro_tokens) for share in shares]
        if all(micro_batches is not None for micro_batches in cut):
            return [micro_batches for micro_batches in cut if micro_batches is not None]
        count += 1


def deal(tokens: Sequence[int], hands: int) -> list[list[int]]:
    """Deal places 0, 1, ... to so many hands, so that the largest sum of tokens is small; places ascend in a hand.

    Longest first to the emptiest hand, then moves and swaps between the fullest and the emptiest while they help.
    """
    result: list[list[int]] = [[] for _ in range(hands)]
    heap = [(0, hand) for hand in range(hands)]
    for place in sorted(range(len(tokens)), key=lambda place: (-tokens[place], place)):
        total, hand = heap[0]
        result[hand].append(place)
        heapq.heapreplace(heap, (total + tokens[place], hand))
    _refine(result, tokens)
    return [sorted(places) for places in result]


def _refine(hands: list[list[int]], tokens: Sequence[int]) -> None:
    totals = [sum(tokens[place] for place in places) for places in hands]
    for _ in range(4 * len(hands)):
        full = max(range(len(hands)), key=lambda hand: (totals[hand], hand))
        low = min(range(len(hands)), key=lambda hand: (totals[hand], hand))
        change = _best_change(hands[full], hands[low], tokens, totals[full] - totals[low])
        if change is None:
            return
        given, taken = change
        hands[full].remove(given)
        hands[low].append(given)
        moved = tokens[given]
        if taken is not None:
            hands[low].remove(taken)
            hands[full].append(taken)
            moved -= tokens[taken]
        totals[full] -= moved
        totals[low] += moved


def _best_change(full: list[int], low: list[int], tokens: Sequence[int], gap: int) -> tuple[int, int | None] | None:
    """What `full` gives and what it takes back (None: nothing) to bring both nearest to their mean."""
    takes: dict[int, int | None] = {tokens[place]: place for place in reversed(low)}
    takes[0] = None
    gives = {tokens[place]: place for place in reversed(full)}
    # A move of m tokens turns the gap into |gap - 2 m|, so any 0 < m < gap helps.
    options = [(abs(gap - 2 * (g - t)), g, t) for g in gives for t in takes if 0 < g - t < gap]
    if not options:
        return None
    _, give, take = min(options)
    return gives[give], takes[take]


def _cut(share: Sequence[int], tokens: Sequence[int], count: int, micro_tokens: int) -> list[list[int]] | None:
    """A rank's slots in `count` micro-batches, or None if one would be too long.

    Slots of like length go together, the longest first: attention lays a micro-batch out as long as its longest.
    """
    queue = sorted(share, key=lambda place: (-tokens[place], place))
    cut, start, left = [], 0, sum(tokens[place] for place in share)
    for parts in range(count, 0, -1):
        end, total = start, 0
        while end < len(queue):
            more = tokens[queue[end]]
            # To the nearest of an equal part of what is left; at least one, at most `micro_tokens`.
            if end > start and (total + more > micro_tokens or total + more / 2 > left / parts):
                break
            total += more
            end += 1
        cut.append(sorted(queue[start:end]))
        start, left = end, left - total
    return cut if start == len(queue) else None
