"""Attention one example after the other: the same numbers and gradients as the plain formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlp.data.packing import pack
from vlp.models import eachexample, kernels
from vlp.models.attention import attend
from vlp.models.eachexample import attend_each, fits

HEADS, WIDTH = 3, 5
CASES = {
    "self": ([3, 1, 7, 4], [3, 1, 7, 4]),
    "cross": ([3, 1, 7, 4], [2, 5, 1, 6]),
    "without keys": ([3, 2], [0, 4]),
    "without queries": ([0, 2], [3, 4]),
}


def inputs(case: str) -> list[Tensor]:
    queries, keys = CASES[case]
    draw = torch.Generator().manual_seed(0)
    sizes = (sum(queries), sum(keys), sum(keys))
    made = [torch.randn(size, HEADS, WIDTH, generator=draw, dtype=torch.float64) for size in sizes]
    return [each.requires_grad_() for each in made]


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_formula(case: str) -> None:
    queries, keys = map(pack, CASES[case])
    given = inputs(case)
    own, wanted = attend_each(*given, queries, keys, 0.0), attend(*given, queries, keys, implementation="reference")
    torch.testing.assert_close(own, wanted)
    weights = torch.randn_like(own)
    for mine, theirs in zip(
        *(torch.autograd.grad((each * weights).sum(), given) for each in (own, wanted)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("case", CASES)
def test_gradients_hold_with_dropout(case: str) -> None:
    queries, keys = map(pack, CASES[case])

    def seeded(*given: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attend_each(*given, queries, keys, 0.4)

    given = inputs(case)
    assert torch.autograd.gradcheck(seeded, given)
    assert not torch.equal(seeded(*given), attend_each(*given, queries, keys, 0.0))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("dtype", "large", "near"),
    [(torch.float32, 1 << 30, 1e-5), (torch.bfloat16, 1 << 30, 8e-3), (torch.bfloat16, 0, 3e-2)],
    ids=["fp32", "bf16 by products in fp32", "bf16"],
)
def test_every_precision_gives_the_same_under_one_mask(
    dtype: torch.dtype, large: int, near: float, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eachexample, "_LARGE", large)
    queries, keys = map(pack, CASES[case])
    results = []
    given = [each.detach().to(dtype) for each in inputs(case)]
    for kind in (dtype, torch.float64):
        rounded = [each.to(kind).requires_grad_() for each in given]
        torch.manual_seed(1)
        out = attend_each(*rounded, queries, keys, 0.4)
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(dtype)
        results.append((out, *torch.autograd.grad(out, rounded, weights.to(kind))))
    for mine, exact in zip(*results, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), exact, atol=near, rtol=near)


@pytest.mark.parametrize(
    ("lengths", "kind"),
    [([150, 160], torch.bfloat16), ([100, 120], torch.float32), ([*range(150, 163)], torch.float32)],
    ids=["long ones of few lengths", "short ones", "of many lengths"],
)
def test_products_are_in_bf16_where_that_is_faster(
    lengths: list[int], kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing, kinds = pack(lengths), set()
    monkeypatch.setattr(kernels, "_SLOW", frozenset())
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda x, *rest, **more: kinds.add(x.dtype) or softmax(x, *rest, **more))
    x = torch.ones(sum(lengths), 1, 8, dtype=torch.bfloat16)
    assert attend_each(x, x, x, packing, packing, 0.0).dtype == torch.bfloat16
    assert kinds == {kind}


def test_dropout_keeps_the_mean() -> None:
    packing = pack([40, 30])
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(70, 4, 8, generator=draw) for _ in range(2))
    torch.manual_seed(0)
    kept = [attend_each(q, k, torch.ones(70, 4, 8), packing, packing, 0.25) for _ in range(50)]
    assert torch.stack(kept).mean().item() == pytest.approx(1, abs=0.01)
    assert torch.stack(kept).std().item() > 0.02


def test_heads_may_be_parts_of_wider_rows() -> None:
    packing = pack([4, 6])
    both = torch.randn(10, 2 * HEADS * WIDTH, requires_grad=True)
    key, value = (half.unflatten(-1, (HEADS, WIDTH)) for half in both.chunk(2, -1))
    query = torch.randn(10, HEADS, WIDTH)
    own = attend_each(query, key, value, packing, packing, 0.0)
    wanted = attend(query, key, value, packing, packing, implementation="reference")
    torch.testing.assert_close(own, wanted)
    (mine,), (theirs,) = (torch.autograd.grad(each.square().sum(), both) for each in (own, wanted))
    torch.testing.assert_close(mine, theirs)


def test_tiny_and_very_long_examples_go_the_other_way() -> None:
    query = torch.zeros(1, 12, 64)
    assert fits(query, pack([70, 60]), pack([70, 60]))
    assert not fits(query, pack([9, 8]), pack([9, 8]))
    assert not fits(query, pack([2000]), pack([2000]))
    assert not fits(query.to("meta"), pack([70, 60]), pack([70, 60]))
