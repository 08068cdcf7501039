"""The output cut into parts: each a file that is there whole or not at all. Which examples a part holds depends on the
source and the request alone, never on ranks or batches, so that any number of ranks writes the same files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlp.features.kinds import Feature
from vlp.features.sources import Lengths, Source

MAX_BYTES = 256 << 20
"""Of a part's features in memory, as fp32: a rank holds one part at once."""
WINDOW = 256
"""Examples that are read and batched at once: enough for batches of like length, few enough for their pixels."""


@dataclass(frozen=True)
class Part:
    """Some consecutive examples of one group."""

    group: int
    name: str
    """What its file is called, without its suffix."""
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def windows(self) -> list[tuple[int, int]]:
        """The examples in turn, a window at a time."""
        return [(start, min(start + WINDOW, self.last)) for start in range(self.first, self.last, WINDOW)]


def cut(source: Source, features: Sequence[Feature], widths: Mapping[str, int], most: int) -> list[Part]:
    """All parts of a source, in its order.

    Args:
        most: examples of a part; those of one sample stay together even so.
    """
    parts = []
    for number, group in enumerate(source.groups):
        if not group.examples:
            continue
        ends = _ends(source.lengths(number), features, widths, most)
        for place, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            parts.append(Part(number, f"{group.name}-{place:03d}", first, last))
    return parts


def _ends(lengths: Lengths, features: Sequence[Feature], widths: Mapping[str, int], most: int) -> list[int]:
    tokens = zip(lengths.text_E.tolist(), lengths.image_E.tolist(), strict=True)
    bytes_E = np.cumsum([4 * sum(one.floats(widths[one.name], *pair) for one in features) for pair in tokens])
    sample_E = lengths.sample_E
    borders = np.append(np.flatnonzero(np.diff(sample_E)) + 1, len(sample_E))
    ends: list[int] = []
    start = 0
    while start < len(sample_E):
        before = int(bytes_E[start - 1]) if start else 0
        fitting = min(start + most, int(np.searchsorted(bytes_E, before + MAX_BYTES, side="right")))
        place = int(np.searchsorted(borders, fitting, side="right"))
        end = int(borders[place - 1]) if place and borders[place - 1] > start else int(borders[place])
        ends.append(end)
        start = end
    return ends
