"""Dropout by masks of our own making."""

from __future__ import annotations

import pytest
import torch

from vlp.models.dropout import added, dropped, keep_mask


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_so_many_are_dropped_and_the_mean_stays(probability: float) -> None:
    torch.manual_seed(0)
    out = dropped(torch.ones(400, 501), probability, True)
    assert (out == 0).float().mean().item() == pytest.approx(probability, abs=0.003)
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert out.unique().numel() == 2


def test_neighbours_and_rows_are_independent() -> None:
    torch.manual_seed(0)
    kept = keep_mask(1 << 20, 0.5, torch.empty(0))[0].float() - 0.5
    for apart in (1, 2, 3, 4, 8, 768):
        assert abs((kept[apart:] * kept[:-apart]).mean().item()) < 0.002


def test_the_seed_decides() -> None:
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        made.append(dropped(torch.ones(64), 0.5, True))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_pass_where_numbers_do(dtype: torch.dtype) -> None:
    x = torch.randn(9, 7).to(dtype).requires_grad_()
    out = dropped(x, 0.3, True)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(out, x.detach() * x.grad)


def test_added_is_the_sum_with_what_is_kept() -> None:
    x, update = (torch.randn(9, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.manual_seed(0)
    out = added(x, update, 0.3, True)
    torch.manual_seed(0)
    torch.testing.assert_close(out, x + dropped(update, 0.3, True))

    def seeded(*given: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return added(given[0], given[1], 0.3, True)

    assert torch.autograd.gradcheck(seeded, (x, update))


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped_without_need(probability: float, training: bool) -> None:
    x = torch.randn(5, 6)
    assert torch.equal(dropped(x, probability, training), x)
    assert torch.equal(added(x, x, probability, training), x + x)
