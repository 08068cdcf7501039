"""Every pre-training objective over regions, words and patches: loss and gradient are of the global batch alone, at
every ZeRO stage, also where a rank has nothing to guess and no mismatched pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.distributed.engines import engine_around
from tests.distributed.ranks import run_on_ranks
from tests.distributed.test_global_batch import module_of as bare_module_of
from tests.distributed.test_global_batch import plain_loss
from tests.examples import REGION_WIDTH, SMALL, Words, sample, shipped
from tests.unit.pictures import encoded
from vlp.distributed import World
from vlp.models import crossentropy
from vlp.seeds import draw, generator
from vlp.tasks.module import TaskModule
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.tasks.task import Setting
from vlp.train.optimizer import OptimizerConfig
from vlp.types import Batch, Example, Pair, Slot, Step

STAGES = (0, 1, 2, 3)
BATCH = 8
TORN, BARE, SHORT = (0, 3, 6), 5, (1, 4)
"""Examples with a mismatched pair; without an image; with one region, which stays in sight, or without pixels."""
SEED = 3
"""Of draws that leave it in sight."""

# Weights move by g / (|g| + 1) in the first step of AdamW, so equal weights are equal gradients.
OPTIMIZER = OptimizerConfig(epsilon=1.0, weight_decay=0.0)
REGIONS: dict[str, Any] = {
    "objectives": {
        "mlm": {"kind": "masked_language", "probability": 0.3},
        "itm": {"kind": "matching", "replace": "second_text", "weight": 0.5},
        "wra": {"kind": "word_region_alignment", "along_with": "itm", "weight": 0.1},
        "mrfr": {"kind": "region_feature", "distance": "smooth_l1", "average": "regions", "tied": True},
        "nce": {"kind": "region_contrast", "negatives": 9, "images": 2},
        "mrc": {"kind": "region_class", "loss": "cross_entropy", "average": "examples"},
        "obj": {"kind": "region_class", "labels": "hard", "over": "all", "by_confidence": True, "background": True},
    },
    "region_hiding": {"at_least_one": False, "zero": 0.6, "random": 0.2, "overlap": 0.4},
}
PIXELS: dict[str, Any] = {
    "objectives": {
        "mlm": {"kind": "masked_language", "probability": 0.3},
        "itm": {"kind": "matching", "replace": "either"},
        "wra": {"kind": "word_region_alignment", "specials": False},
        "mpf": {"kind": "patch_feature", "of": "features", "tied": True, "standardise": True},
        "mpp": {"kind": "patch_feature", "of": "pixels"},
    },
    "patch_hiding": {"probability": 0.3, "at_least_one": False, "zero": 0.8},
}
MODELS = {
    "regions": ("uniter_tiny", REGIONS, ("encoder.0.repeat=1",)),
    "two streams": ("lxmert_tiny", REGIONS, ("encoder.0.repeat=1", "encoder.2.repeat=1")),
    "pixels": (
        "uniter_tiny_pixels",
        PIXELS,
        ("encoder.0.repeat=1", "image.source.backbone=test_convnext", "image.source.size=32"),
    ),
}
SPLITS: dict[str, list[list[list[int]]]] = {
    "1 rank x 3": [[[5], [0, 3, 2, 7], [1, 6, 4]]],
    "2 ranks, one without a hidden region or a mismatched pair": [[[5, 1], [4]], [[0, 2, 3], [6, 7]]],
    "2 ranks, one with mismatched pairs alone, one empty once": [[[0, 3], [6]], [[1, 2, 4, 5, 7], []]],
}
CASES = [(model, split) for model in MODELS for split in SPLITS]


@cache
def task_of(model: str) -> PretrainTask:
    name, task, overrides = MODELS[model]
    return PretrainTask(PretrainConfig.parse(task), Setting(shipped(name, *SMALL, *overrides), Words(), seed=0))  # type: ignore[arg-type]


def example_of(task: PretrainTask, number: int) -> Example:
    regions = 0 if number == BARE else 1 if number in SHORT else 6
    record, other = sample(6, regions, number), sample(4, 3, 100 + number)
    if task.wants_image and number not in (BARE, *SHORT):
        noise = generator(1, "noise", number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        record = replace(record, image=encoded(Image.fromarray(noise)))
    lent_KD = generator(1, "lent", number).standard_normal((5, REGION_WIDTH)).astype(np.float16)
    shown = replace(record, lent_KD=lent_KD) if number != BARE else replace(record, regions=None)
    text = record if task.wants_image else replace(record, second=other.captions[0])
    pair = Pair(number, number, matched=number not in TORN)
    slot = Slot(0, number, dataset=0, epoch=0, block=0, group=0, example=number)
    return task.example(slot, pair, shown, text, 0, draw(SEED, "example", number), 0)


def batches_of(task: PretrainTask, parts: Sequence[Sequence[int]]) -> list[Batch]:
    return [task.collate([[example_of(task, number)] for number in part], 0) for part in parts]


def module_of(task: PretrainTask) -> TaskModule:
    """With biases that are not 0: the norm of a hidden feature's projection would multiply what is left by 1e6."""
    module, draw = bare_module_of(task), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias") and parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return module


def one_step(
    world: World, model: str, parts: list[list[list[int]]], stage: int, most: int = crossentropy.MOST
) -> tuple[float, dict[str, Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossentropy, "MOST", most)
        return _one_step(world, model, parts, stage)


def _one_step(world: World, model: str, parts: list[list[list[int]]], stage: int) -> tuple[float, dict[str, Tensor]]:
    task = task_of(model)
    engine = engine_around(module_of(task), task.weights, stage, world, optimizer=OPTIMIZER)
    own = parts[world.rank]
    result = engine.train_step(Step(0, batches_of(task, own), examples=sum(map(len, own))), 1.0)
    weights = engine.full_weights()
    engine.close()
    return result.loss, weights


@cache
def plain_step(model: str) -> tuple[float, dict[str, Tensor]]:
    """The same by torch alone, on the whole batch at once."""
    task = task_of(model)
    module = module_of(task)
    (batch,) = batches_of(task, [range(BATCH)])
    loss = plain_loss(task, module, batch)
    loss.backward()
    moved = {}
    for name, parameter in module.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        moved[name] = (parameter - gradient / (gradient.abs() + 1)).detach() if parameter.requires_grad else parameter
    return loss.item(), moved


@pytest.mark.parametrize("model", MODELS)
def test_the_batches_are_what_they_should_be(model: str) -> None:
    task = task_of(model)
    whole, without, torn = batches_of(task, [range(BATCH), [*SHORT, BARE], TORN])
    assert all(targets.count > 0 for targets in whole.targets.values())
    hiding = [name for name, objective in task.objectives.items() if objective.hides == "image" and name != "obj"]
    assert hiding
    assert not any(len(without.targets[name].positions_K) for name in hiding)
    assert without.targets["itm"].values["matched"].all()
    assert not torn.targets["itm"].values["matched"].any()
    assert [name for name, targets in torn.targets.items() if targets.count] == ["itm", "wra"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("model", "split"), CASES)
def test_loss_and_gradient_are_of_the_global_batch(model: str, split: str, stage: int) -> None:
    parts = SPLITS[split]
    loss, wanted = plain_step(model)
    for found_loss, found in run_on_ranks(len(parts), one_step, model=model, parts=parts, stage=stage):
        assert found_loss == pytest.approx(loss, abs=1e-5)
        for name in found:  # on rank 0
            torch.testing.assert_close(found[name], wanted.get(name, found[name]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", STAGES)
def test_words_that_are_guessed_a_few_at_a_time_change_nothing(stage: int) -> None:
    model, parts = "regions", SPLITS["2 ranks, one with mismatched pairs alone, one empty once"]
    loss, wanted = plain_step(model)
    for found_loss, found in run_on_ranks(2, one_step, model=model, parts=parts, stage=stage, most=1):
        assert found_loss == pytest.approx(loss, abs=1e-5)
        for name in found:
            torch.testing.assert_close(found[name], wanted.get(name, found[name]), atol=1e-5, rtol=0)
