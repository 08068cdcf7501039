"""Activations of the encoder's blocks worked out again in backward: no number changes, at any ZeRO stage."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.distributed.engines import engine_around
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_frozen import StatesTask
from tests.examples import batch_of, shaken, shipped
from vlp.distributed import World
from vlp.models.model import Network
from vlp.train.optimizer import OptimizerConfig
from vlp.train.zero import Precision
from vlp.types import Batch, Step, Targets

SIZES = ("text.layer.width=16", "text.layer.heads=2", "text.layer.ffn=24", "text.max_length=16", "dropout=0.3")
EXAMPLES = [[[(5, 3), (3, None)], [(4, 2)]], [[(6, 1), (2, 4)], []]]
"""Per rank, per micro-batch, tokens and regions; the last micro-batch is empty."""


def micro_batch(sizes: list[tuple[int, int | None]]) -> Batch:
    batch = batch_of(sizes)
    batch.targets = {"states": Targets(torch.arange(len(sizes)), {}, float(len(sizes)))}
    return batch


def train(
    world: World, name: str, stage: int, precision: Precision, checkpointing: bool
) -> tuple[list[float], dict[str, Tensor]]:
    torch.manual_seed(0)
    model = shaken(Network(shipped(name, *SIZES, f"checkpointing={str(checkpointing).lower()}")))
    optimizer = OptimizerConfig(epsilon=1e-4)
    engine = engine_around(StatesTask(model), {"states": 1.0}, stage, world, optimizer=optimizer, precision=precision)
    numbers = []
    for number in range(2):
        batches = [micro_batch(sizes) for sizes in EXAMPLES[world.rank]]
        result = engine.train_step(Step(number, batches, examples=2), 1e-2)
        numbers += [result.loss, result.grad_norm]
    weights = engine.full_weights()
    engine.close()
    return numbers, weights


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("name", "precision"), [("uniter_tiny", "bf16"), ("lxmert_tiny", "fp32")])
def test_recomputing_changes_no_number_with_dropout_on(name: str, precision: Precision, stage: int) -> None:
    kept, again = (
        run_on_ranks(2, train, name=name, stage=stage, precision=precision, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    for (numbers, weights), (wanted, wanted_weights) in zip(again, kept, strict=True):
        assert numbers == wanted
        assert weights.keys() == wanted_weights.keys()
        assert all(torch.equal(weight, wanted_weights[name]) for name, weight in weights.items())
