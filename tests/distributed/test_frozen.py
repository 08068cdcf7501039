"""Frozen and partly frozen backbones, recomputed activations and weights shared across depth, at every ZeRO stage.

Loss and gradient are those of plain torch on the whole batch, and frozen weights stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.engines import engine_around
from tests.distributed.ranks import run_on_ranks
from tests.examples import batch_of as region_batch
from tests.examples import shaken
from tests.unit.backbones import batch_of, both_batch, config_of, source_of
from tests.unit.text_models import config_of as text_config
from vlp.distributed import World
from vlp.models.model import ModelConfig, Network
from vlp.train.optimizer import OptimizerConfig
from vlp.types import Batch, Losses, Step, Targets

STAGES = (0, 1, 2, 3)
TINY = {"arguments": {"embed_dim": 24, "depth": 3, "num_heads": 2}}
MODELS: dict[str, dict[str, Any]] = {
    "a frozen ResNet beside regions": {"name": "convolutions", "train": "none", "beside_regions": True},
    "the last block of a ViT, recomputed": {
        "name": "patches and their class token",
        "train": 1,
        "checkpointing": True,
        **TINY,
    },
    "the last stage of a Swin": {"name": "windows", "train": 1},
    "a ConvNeXt, recomputed": {"name": "modern convolutions", "checkpointing": True},
    "one set of weights for three text layers": {},
}
IMAGES = [True, False, True, True]
SPLITS = [[[0], [2]], [[1, 3], []]]
"""Per rank, per micro-batch, which examples; the last micro-batch is empty."""


class StatesTask(nn.Module):
    """A model whose loss is the size of all of its states."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Losses:
        encoded = self.model(batch)
        states = (encoded.text_NH, encoded.image_MH, encoded.pooled_BH)
        return Losses({"states": torch.stack([part.pow(4).sum() for part in states]).sum()}, {})


def settings(case: str) -> tuple[ModelConfig, Any]:
    more = dict(MODELS[case])
    if not more:
        return text_config("albert").model_copy(update={"heads": {}}), None
    beside = more.pop("beside_regions", False)
    source = source_of(more.pop("name"), **more)
    return config_of(source, beside), (source, beside)


def model_of(case: str) -> Network:
    torch.manual_seed(0)
    made = Network(settings(case)[0])
    for part in (made.text, *made.image.own_modules(), made.encoder, made.pooler):
        shaken(part)
    return made


def batch(case: str, which: Sequence[int]) -> Batch:
    """So many examples, with an image or without as the chosen ones have it."""
    _, pixels = settings(case)
    made: Batch
    if pixels is None:
        made = region_batch([(4 + number, None) for number in which], first_seed=0)
    elif pixels[1]:
        made = both_batch(pixels[0], [2 if IMAGES[number] else None for number in which], kept=3)
    else:
        made = batch_of(pixels[0], [IMAGES[number] for number in which])
    made.targets = {"states": Targets(torch.arange(len(which)), {}, float(len(which)))}
    return made


@cache
def plain(case: str) -> tuple[float, float]:
    """Loss and gradient norm by torch alone, the same micro-batches one after the other."""
    model = model_of(case).train()
    task = StatesTask(model)
    total = torch.zeros(())
    for parts in SPLITS:
        for which in parts:
            total = total + task(batch(case, which)).sums["states"] / 4
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert len(gradients) == sum(p.requires_grad for p in model.parameters())
    return total.item(), float(nn.utils.get_total_norm(gradients))


def train(world: World, case: str, stage: int) -> tuple[float, float, dict[str, Tensor]]:
    optimizer = OptimizerConfig(epsilon=1e-4)
    engine = engine_around(StatesTask(model_of(case)), {"states": 1.0}, stage, world, optimizer=optimizer)
    own = SPLITS[world.rank]
    result = engine.train_step(Step(0, [batch(case, which) for which in own], examples=2), 1e-3)
    again = engine.train_step(Step(1, [batch(case, which) for which in own], examples=2), 1e-3)
    assert again.loss != result.loss
    weights = engine.full_weights()
    engine.close()
    return result.loss, result.grad_norm, weights


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", MODELS)
def test_a_step_is_that_of_plain_torch_and_frozen_weights_stay(case: str, stage: int) -> None:
    loss, norm = plain(case)
    found = run_on_ranks(2, train, case=case, stage=stage)
    for its_loss, its_norm, _ in found:
        assert its_loss == pytest.approx(loss, rel=1e-5)
        assert its_norm == pytest.approx(norm, rel=1e-4)
    weights, model = found[0][2], model_of(case)
    assert {name.removeprefix("model.") for name in weights} == set(model.state_dict())
    moved = {name for name, own in model.state_dict().items() if not torch.equal(weights[f"model.{name}"], own)}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved <= trained
    assert len(moved) > 0.8 * len(trained)
    if "text" not in case:
        assert any(name.startswith("image.") and "network" in name for name in moved) == (
            MODELS[case].get("train") != "none"
        )
