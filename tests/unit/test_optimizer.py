"""Which parameters learn how fast: groups, layers, missing bias correction, LAMB."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.examples import SMALL, shipped
from vlp.errors import ConfigError
from vlp.models.heights import heights
from vlp.models.model import Network
from vlp.train.lamb import Lamb
from vlp.train.optimizer import OptimizerConfig, make_optimizer, parameter_groups, set_rate


def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.ModuleDict({"bert": nn.Linear(3, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 2)})


def settings(config: OptimizerConfig, **known: int) -> dict[str, tuple[float, float]]:
    """Rate factor and decay by parameter name."""
    made = module()
    names = {parameter: name for name, parameter in made.named_parameters()}
    return {
        names[p]: (group["rate_factor"], group["decay"])
        for group in parameter_groups(made, config, known or None)
        for p in group["params"]
    }


def test_norms_and_biases_do_not_decay_unless_asked() -> None:
    found = settings(OptimizerConfig(weight_decay=0.1))
    assert {name for name, (_, decay) in found.items() if decay} == {"bert.weight", "head.weight"}
    assert {decay for _, decay in settings(OptimizerConfig(weight_decay=0.1, decay_all=True)).values()} == {0.1}


def test_the_first_group_that_fits_counts() -> None:
    groups = [{"pattern": "^bert", "learning_rate": 0.1}, {"pattern": "weight$", "learning_rate": 2, "weight_decay": 0}]
    found = settings(OptimizerConfig.parse({"weight_decay": 0.5, "groups": groups}))
    assert found["bert.weight"] == (0.1, 0.5)
    assert found["bert.bias"] == (0.1, 0.0)
    assert found["head.weight"] == (2.0, 0.0)
    assert found["head.bias"] == (1.0, 0.0)


def test_a_frozen_parameter_is_in_no_group() -> None:
    made = module()
    made["bert"].requires_grad_(False)  # type: ignore[index]
    assert sum(len(group["params"]) for group in parameter_groups(made, OptimizerConfig())) == 4


@pytest.mark.parametrize("patterns", [["nowhere"], ["bert", "bert.weight"]])
def test_a_group_without_a_parameter_is_refused(patterns: list[str]) -> None:
    config = OptimizerConfig.parse({"groups": [{"pattern": pattern} for pattern in patterns]})
    with pytest.raises(ConfigError, match=f"pattern '{patterns[-1]}' fits no"):
        settings(config)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"groups.0.pattern: .* is no regular expression"):
        OptimizerConfig.parse({"groups": [{"pattern": "("}]}, "run.yaml: optimizer")


def test_layers_below_the_heads_learn_slower() -> None:
    found = settings(OptimizerConfig(layer_decay=0.5), **{"bert.weight": 2, "bert.bias": 2, "norm.weight": 1})
    assert found["bert.weight"][0] == 0.25
    assert found["norm.weight"][0] == 0.5
    assert found["head.weight"][0] == 1.0
    with pytest.raises(ConfigError, match="layer_decay"):
        settings(OptimizerConfig(layer_decay=0.5))


def test_heights_of_a_dual_stream_model() -> None:
    model = Network(shipped("lxmert_tiny", *SMALL))
    found = heights(model)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    by_block = {
        number: {height for name, height in found.items() if name.startswith(f"encoder.blocks.{number}.")}
        for number in range(len(model.encoder.blocks))
    }
    streams = [block.config.stream for block in model.encoder.blocks]  # type: ignore[union-attr]
    both = streams.count("both")
    assert [by_block[n] for n in range(len(streams)) if streams[n] == "both"] == [{h} for h in range(both, 0, -1)]
    for stream in ("text", "image"):
        own = [by_block[n] for n in range(len(streams)) if streams[n] == stream]
        assert own == [{both + len(own) - n} for n in range(len(own))]
        assert {h for name, h in found.items() if name.startswith(f"{stream}.")} == {both + len(own) + 1}
    assert {height for name, height in found.items() if name.startswith("pooler")} == {0}


def published_bert_adam(weight: torch.Tensor, gradients: list[torch.Tensor], rate: float) -> torch.Tensor:
    """BertAdam by hand: no bias correction, decay added to the update."""
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for gradient in gradients:
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        weight = weight - rate * (mean / (square.sqrt() + 1e-6) + 0.01 * weight)
    return weight


def test_without_bias_correction_it_is_bert_adam() -> None:
    torch.manual_seed(0)
    config = OptimizerConfig(epsilon=1e-6, weight_decay=0.01, bias_correction=False)
    made = nn.Linear(5, 3, bias=False).double()
    start, gradients = made.weight.detach().clone(), [torch.randn(3, 5).double() for _ in range(20)]
    optimizer = make_optimizer(made, config)
    for step, gradient in enumerate(gradients, 1):
        made.weight.grad = gradient.clone()
        set_rate(optimizer.param_groups, config, 0.02, step)
        optimizer.step()
    torch.testing.assert_close(made.weight.detach(), published_bert_adam(start, gradients, 0.02), atol=1e-12, rtol=0)


def test_lamb_takes_a_step_as_long_as_the_rate_times_the_tensor() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 4).double())
    start, gradient = weight.detach().clone(), torch.randn(6, 4).double()
    weight.grad = gradient.clone()
    optimizer = Lamb([{"params": [weight], "weight_decay": 0.1}], betas=(0.9, 0.999), eps=1e-6)
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    update = gradient / (gradient.abs() + 1e-6) + 0.1 * start  # the first corrected moments are g and g^2
    expected = start - 0.01 * update * start.norm() / update.norm()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-12, rtol=0)
    assert (weight.detach() - start).norm().item() == pytest.approx(0.01 * start.norm().item())


def test_lamb_moves_a_tensor_of_zeros() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    optimizer = Lamb([{"params": [weight]}], betas=(0.9, 0.999), eps=1e-6)
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), -0.01), atol=1e-6, rtol=0)


def test_rates_of_groups_follow_the_schedule() -> None:
    config = OptimizerConfig.parse({"groups": [{"pattern": "bert", "learning_rate": 0.1}]})
    groups: list[dict[str, Any]] = parameter_groups(module(), config)
    set_rate(groups, config, 0.5, 3)
    assert {round(group["lr"], 6) for group in groups} == {0.05, 0.5}
    assert all(math.isclose(group["weight_decay"], group["decay"]) for group in groups)
