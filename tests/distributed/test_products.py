"""oneDNN's products on some ranks and torch's on others, as batches are of different sizes: the same step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_checkpointing import train
from vlp.distributed import World
from vlp.models import linear

MANY, FEW = 5 * 16 * 24, 1 << 28
"""Multiplications from which products are oneDNN's: those of some batches, and none in a tiny model."""


def train_by(world: World, stage: int, fewest: int) -> tuple[list[float], dict[str, Tensor], int]:
    """What `train` gives with blocks worked out again in backward, and how many products were oneDNN's."""
    kept, done = (linear._FEWEST, linear._onednn), []
    try:
        linear._FEWEST = fewest
        linear._onednn = lambda *given: done.append(1) or kept[1](*given)  # type: ignore[assignment, func-returns-value]
        numbers, weights = train(world, "lxmert_tiny", stage, "fp32", checkpointing=True)
    finally:
        linear._FEWEST, linear._onednn = kept
    return numbers, weights, len(done)


@pytest.mark.skipif(not linear._HAS_ONEDNN, reason="torch here has no oneDNN, or the CPU no AVX")
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_librarys_products_change_no_step(stage: int) -> None:
    mixed = run_on_ranks(2, train_by, stage=stage, fewest=MANY)
    plain = run_on_ranks(2, train_by, stage=stage, fewest=FEW)
    assert [done for *_, done in plain] == [0, 0]
    assert 0 < mixed[0][2] < mixed[1][2]  # of equally many products
    for (numbers, weights, _), (wanted, wanted_weights, _) in zip(mixed, plain, strict=True):
        assert numbers == pytest.approx(wanted, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, wanted_weights[name], atol=1e-5, rtol=0)
