"""The step at ZeRO stage 0 is torch's own on fp32 weights, whatever forward and backward are in."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from vlp.train import dataparallel
from vlp.train.dataparallel import DataParallel
from vlp.train.lamb import Lamb

RATE = 0.01


def module() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    made[2].weight.requires_grad_(False)
    made.register_buffer("statistic", torch.arange(3.0))
    return made


def optimizer_of(parameters: list[torch.Tensor], kind: str = "adamw") -> torch.optim.Optimizer:
    if kind == "lamb":
        return Lamb([{"params": parameters, "lr": RATE}], betas=(0.9, 0.999), eps=1e-6)
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.1, fused=True)


def trained(of: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in of.parameters() if parameter.requires_grad]


def loss(of: nn.Module, number: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(number)
    return of(torch.randint(7, (6,), generator=draw)).float().pow(2).sum()  # type: ignore[no-any-return]


def parallel(of: nn.Module, dtype: torch.dtype, kind: str = "adamw") -> DataParallel:
    return DataParallel(of, optimizer_of(trained(of), kind), dtype, ranks=1, bucket=1)  # type: ignore[arg-type]


def by_torch(own: nn.Module, dtype: torch.dtype, steps: list[list[int]], clip: float, kind: str) -> list[torch.Tensor]:
    """The masters after some steps, each of some micro-batches: gradients in `dtype`, all else in fp32."""
    rounded = copy.deepcopy(own).to(dtype)
    masters = [parameter.detach().float() for parameter in trained(rounded)]
    optimizer = optimizer_of(masters, kind)
    for numbers in steps:
        for number in numbers:
            rounded.zero_grad()
            loss(rounded, number).backward()
            for master, parameter in zip(masters, trained(rounded), strict=True):
                gradient = parameter.grad.float()  # type: ignore[union-attr]
                master.grad = gradient if master.grad is None else master.grad + gradient
        nn.utils.clip_grad_norm_(masters, clip)
        optimizer.step()
        for master, parameter in zip(masters, trained(rounded), strict=True):
            parameter.data.copy_(master)
            master.grad = None
    return masters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adamw", "lamb"])
@pytest.mark.parametrize("together", [dataparallel.TOGETHER, 1])
def test_steps_are_torchs_on_fp32_weights(
    dtype: torch.dtype, kind: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataparallel, "TOGETHER", together)
    own = module()
    steps = [[0], [1, 2, 3], [4]]
    wanted = by_torch(own, dtype, steps, 2.0, kind)
    made = parallel(own, dtype, kind)
    for numbers in steps:
        for number in numbers:
            loss(own, number).backward()
            if len(numbers) > 1:
                made.accumulate()
        norm, applied = made.step(2.0)
        assert norm > 2  # so that it was clipped
        assert applied
        assert all(p.grad is None and m.grad is None for p, m in made.masters.items())
    for parameter, master, expected in zip(trained(own), made.masters.values(), wanted, strict=True):
        assert master.dtype == torch.float32
        # In bf16 the norm that clipping divides by comes of rows' norms with three digits each.
        torch.testing.assert_close(master, expected, atol=1e-6 if dtype == torch.float32 else 1e-5, rtol=0)
        assert torch.equal(parameter.detach(), master.to(dtype))
    assert {parameter.dtype for parameter in own.parameters()} == {dtype}
    assert own.statistic.dtype == torch.float32


def test_many_small_gradients_add_up() -> None:
    own = module()
    made = parallel(own, torch.bfloat16)
    parameter = own[1].bias
    for size in [1.0] + [2.0**-9] * 512:  # of which bf16 would keep the first alone
        parameter.grad = torch.full_like(parameter, size)
        made.accumulate()
    assert made.step(None)[0] == pytest.approx(2 * math.sqrt(4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_changes_nothing_and_is_let_go_of(bad: float) -> None:
    own = module()
    made = parallel(own, torch.bfloat16)
    before = copy.deepcopy(own.state_dict())
    loss(own, 0).backward()
    own[1].weight.grad[0, 0] = bad
    norm, applied = made.step(1.0)
    assert not math.isfinite(norm)
    assert not applied
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())
    loss(own, 1).backward()
    assert made.step(1.0)[1]
    assert all(torch.isfinite(tensor).all() for tensor in own.state_dict().values())


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-4)])
def test_the_norm_of_many_weights_is_exact(dtype: torch.dtype, close: float) -> None:
    """A table of words: torch's own norm of it is off by more than a ten thousandth."""
    own = nn.Embedding(20_000, 768)
    made = parallel(own, dtype)
    draw = torch.Generator().manual_seed(0)
    own.weight.grad = torch.randn(own.weight.shape, generator=draw).to(dtype)
    wanted = float(own.weight.grad.double().pow(2).sum().sqrt())
    assert made.step(None)[0] == pytest.approx(wanted, rel=close)
