"""What heads and pooler read of a model's final states.

Shape suffixes: W rows that are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from vlp.data.packing import pack
from vlp.models.pooler import PoolerConfig, pooled_rows
from vlp.objectives.objective import Objective
from vlp.types import Batch, Packing, Read, Stream


def rows_read(batch: Batch, objectives: Iterable[Objective], pooler: PoolerConfig) -> dict[Stream, Read]:
    """What the pooler and some objectives together read of a batch, on the CPU as the batch; see `Batch.read`.

    Args:
        objectives: the same for every batch of a step.
    """
    rows: dict[Stream, list[Tensor]] = {"text": [], "image": []}
    for stream, own in pooled_rows(pooler, batch).items():
        rows[stream].append(own)
    for objective in objectives:
        for stream, asked in objective.reads(batch).items():
            if asked is None:
                rows.pop(stream, None)
            elif stream in rows:
                rows[stream].append(asked)
    packings: dict[Stream, Packing] = {"text": batch.text.packing, "image": batch.image.packing}
    return {stream: _read(own, packings[stream]) for stream, own in rows.items()}


def _read(rows: Sequence[Tensor], packing: Packing) -> Read:
    rows_W = np.unique(np.concatenate([np.zeros(0, np.int64), *(each.numpy() for each in rows)]))
    assert not len(rows_W) or 0 <= rows_W[0] <= rows_W[-1] < packing.tokens, "a row is read that there is not"
    examples_W = np.searchsorted(packing.starts_B1.numpy()[1:], rows_W, side="right")
    lengths = np.bincount(examples_W, minlength=len(packing)).tolist()
    return Read(torch.from_numpy(rows_W), pack(lengths), ever=len(rows) > 0)
