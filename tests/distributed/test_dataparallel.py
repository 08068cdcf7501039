"""Gradients at ZeRO stage 0 are means over ranks, in buckets of any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.distributed.ranks import run_on_ranks
from vlp.distributed import World
from vlp.train.dataparallel import DataParallel

SIZES = [(3, 4), (5,), (2, 2), (1,), (30,)]


def mean(world: World, dtype: torch.dtype, bucket: int) -> list[torch.Tensor]:
    """The weights after a step from 0 by the gradient itself; the last one has a gradient on rank 0 only."""
    module = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in SIZES])
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    parallel = DataParallel(module, optimizer, dtype, world.size, bucket)
    for number, parameter in enumerate(module):
        if number < len(SIZES) - 1 or world.is_main:
            parameter.grad = (torch.arange(parameter.numel()).view(parameter.shape) * (world.rank + 1)).to(dtype)
    parallel.step(None)
    return [parameter.detach().float() for parameter in module]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bucket", [1, 17, 1000])
def test_ranks_step_by_the_mean_of_their_gradients(dtype: torch.dtype, bucket: int) -> None:
    for weights in run_on_ranks(2, mean, dtype=dtype, bucket=bucket):
        for size, weight in zip(SIZES, weights, strict=True):
            numbers = torch.arange(weight.numel()).view(size)
            assert torch.equal(weight, -numbers * (0.5 if size == SIZES[-1] else 1.5))
