"""What heads and pooler read of a model's final states.

Shape suffixes: W rows that are read, B examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vlp.data.packing import pack
from vlp.models.pooler import PoolerConfig, pooled_rows
from vlp.objectives.objective import Objective
from vlp.types import Batch, Packing, Read, Stream


def rows_read(batch: Batch, objectives: Mapping[str, Objective], pooler: PoolerConfig) -> dict[Stream, Read]:
    """What the pooler and all objectives together read of a batch, on the CPU as the batch."""
    every = [pooled_rows(pooler, batch), *(objective.reads(batch) for objective in objectives.values())]
    packings: dict[Stream, Packing] = {"text": batch.text.packing, "image": batch.image.packing}
    return {s: _read([rows[s] for rows in every if s in rows], packing) for s, packing in packings.items()}


def _read(rows: Sequence[Tensor], packing: Packing) -> Read:
    rows_W = np.unique(np.concatenate([np.zeros(0, np.int64), *(each.numpy() for each in rows)]))
    examples_W = np.searchsorted(packing.starts_B1.numpy()[1:], rows_W, side="right")
    return Read(torch.from_numpy(rows_W), pack(np.bincount(examples_W, minlength=len(packing)).tolist()))
