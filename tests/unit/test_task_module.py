"""The module that is trained: losses as sums, and every parameter in every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.examples import SMALL, Words, sample, shaken, shipped
from vlp.models.model import Network
from vlp.seeds import draw
from vlp.tasks.module import TaskModule
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.tasks.task import Setting
from vlp.types import Batch, Pair, Slot

OBJECTIVES: dict[str, dict[str, Any]] = {
    "mlm": {"kind": "masked_language"},
    "itm": {"kind": "matching"},
    "mrfr": {"kind": "region_feature", "tied": True},
    "mrc": {"kind": "region_class"},
}


def task_of(family: str, names: Sequence[str]) -> PretrainTask:
    config = PretrainConfig.parse({"objectives": {name: OBJECTIVES[name] for name in names}})
    return PretrainTask(config, Setting(shipped(family, *SMALL), Words(), seed=0))  # type: ignore[arg-type]


def module_of(task: PretrainTask) -> TaskModule:
    model = Network(task.setting.model.model_copy(update={"heads": task.heads}))
    module = shaken(TaskModule(model, task.objectives))
    assert isinstance(module, TaskModule)
    return module


def batch_of(task: PretrainTask, numbers: Sequence[int]) -> Batch:
    """Examples of 6 tokens and as many regions as their number says."""
    examples = []
    for number in numbers:
        record = sample(6, number, seed=number)
        slot = Slot(0, number, dataset=0, epoch=0, block=0, group=0, example=number)
        rng = draw(0, "example", number)
        examples.append([task.example(slot, Pair(number, number), record, record, 0, rng, 0)])
    return task.collate(examples, 0).to("cpu")


@pytest.mark.parametrize("numbers", [[3, 0, 4], [0], []], ids=["mixed", "no region", "no example"])
@pytest.mark.parametrize(
    "names", [*([name] for name in OBJECTIVES), list(OBJECTIVES)], ids=lambda names: "+".join(names)
)
@pytest.mark.parametrize("family", ["uniter_tiny", "lxmert_tiny"])
def test_every_parameter_has_a_gradient_whatever_is_asked(family: str, names: list[str], numbers: list[int]) -> None:
    task = task_of(family, names)
    module, batch = module_of(task), batch_of(task, numbers)
    losses = module(batch)
    assert list(losses.sums) == names
    torch.stack(list(losses.sums.values())).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if not numbers:
            assert (parameter.grad == 0).all(), name
    for name in names:
        asked = batch.targets[name].count > 0
        assert bool(losses.sums[name] != 0) == asked
        assert any((p.grad != 0).any() for p in module.model.heads[name].parameters() if p.grad is not None) == asked


def test_losses_are_sums_over_examples() -> None:
    task = task_of("uniter_tiny", list(OBJECTIVES))
    module = module_of(task)
    together = module(batch_of(task, [3, 0, 4]))
    parts = [module(batch_of(task, [number])) for number in (3, 0, 4)]
    for name in OBJECTIVES:
        alone = torch.stack([part.sums[name] for part in parts])
        torch.testing.assert_close(together.sums[name], alone.sum())
    for name, (value, count) in together.metrics.items():
        assert count == sum(part.metrics[name][1] for part in parts)
        assert float(value) == pytest.approx(sum(float(part.metrics[name][0]) for part in parts), rel=1e-5)


def test_scores_are_those_of_the_rows_with_a_target() -> None:
    task = task_of("lxmert_tiny", ["mlm", "itm"])
    module, batch = module_of(task), batch_of(task, [3, 2])
    encoded = module.model(batch)
    wanted = module.model.heads["mlm"](encoded.text_NH[batch.targets["mlm"].positions_K])
    torch.testing.assert_close(module.scores(batch, "mlm"), wanted)
    torch.testing.assert_close(module.scores(batch, "itm"), module.model.heads["itm"](encoded.pooled_BH))
    assert module.to(torch.bfloat16).scores(batch.to("cpu", torch.bfloat16), "itm").dtype == torch.float32
