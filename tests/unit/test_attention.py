"""`attend` on packed rows: who looks at whom, and what happens where there is nothing to look at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlp.data.packing import pack
from vlp.models.attention import Attention, Implementation, attend, take
from vlp.types import Packing

IMPLEMENTATIONS: tuple[Implementation, ...] = ("sdpa", "reference")


def rows(packing: Packing, seed: int, heads: int = 2, width: int = 3) -> Tensor:
    return torch.randn(packing.tokens, heads, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_is_a_mean_of_values_weighted_by_the_softmax_of_scaled_products(
    implementation: Implementation,
) -> None:
    # One head of width 4: scores are q.k / 2 = ln 3 and 0, so weights 3/4 and 1/4.
    query = torch.tensor([2.0, 0, 0, 0]).view(1, 1, 4)
    key = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]).view(2, 1, 4) * torch.tensor(3.0).log()
    value = torch.tensor([[8.0, 0, 4, 0], [0, 8, 4, 0]]).view(2, 1, 4)
    out = attend(query, key, value, pack([1]), pack([2]), implementation=implementation)
    torch.testing.assert_close(out.flatten(), torch.tensor([6.0, 2, 4, 0]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("lengths", [[3, 1, 4], [2, 2, 2]], ids=["padded", "not padded"])
def test_queries_look_at_their_own_example_only(implementation: Implementation, lengths: list[int]) -> None:
    queries, keys = pack(lengths), pack([2, 5, 1])
    q, k, v = rows(queries, 0), rows(keys, 1), rows(keys, 2)
    out = attend(q, k, v, queries, keys, implementation=implementation)
    assert out.shape == q.shape
    starts, ends = queries.starts_B1.tolist(), keys.starts_B1.tolist()
    for row in range(3):
        own, seen = slice(starts[row], starts[row + 1]), slice(ends[row], ends[row + 1])
        alone = attend(q[own], k[seen], v[seen], pack([lengths[row]]), pack([keys.lengths[row]]))
        torch.testing.assert_close(out[own], alone)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_example_without_keys_sees_zeros(implementation: Implementation) -> None:
    queries, keys = pack([2, 3]), pack([0, 2])
    inputs = [rows(p, seed).requires_grad_() for seed, p in enumerate((queries, keys, keys))]
    out = attend(*inputs, queries, keys, implementation=implementation)
    assert (out[:2] == 0).all()
    assert (out[2:] != 0).all()
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in inputs if x.grad is not None)


@pytest.mark.parametrize(("asked", "seen"), [([2, 1], [0, 0]), ([0, 0], [2, 1]), ([], [])])
def test_attention_to_nothing_keeps_all_inputs_in_the_graph(asked: list[int], seen: list[int]) -> None:
    queries, keys = pack(asked), pack(seen)
    inputs = [rows(p, seed).requires_grad_() for seed, p in enumerate((queries, keys, keys))]
    out = attend(*inputs, queries, keys)
    assert out.shape == (sum(asked), 2, 3)
    assert (out == 0).all()
    out.sum().backward()
    for x in inputs:
        assert x.grad is not None
        assert (x.grad == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dropout_drops_weights_and_scales_the_others(implementation: Implementation) -> None:
    packing = pack([64])
    q = torch.zeros(64, 1, 4)
    ones = torch.ones(64, 1, 4)
    torch.manual_seed(0)
    out = attend(q, q, ones, packing, packing, dropout=0.5, implementation=implementation)
    assert out.std() > 0.05  # each of 64 weights of 1/64 is 0 or 2/64
    assert out.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(attend(q, q, ones, packing, packing, implementation=implementation), ones)


def test_take_moves_rows_and_gradients() -> None:
    x = torch.arange(6.0).view(3, 2).requires_grad_()
    out = take(x, torch.tensor([2, 0, 1]))
    assert out.tolist() == [[4, 5], [0, 1], [2, 3]]
    (out * torch.tensor([[1.0], [10], [100]])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[10, 10], [100, 100], [1, 1]]


def test_projections_have_the_widths_that_were_asked_for() -> None:
    attention = Attention(12, 3, context=8, inner=6)
    assert attention.project_query(torch.zeros(5, 12)).shape == (5, 3, 2)
    key, value = attention.project_keys(torch.zeros(4, 8))
    assert key.shape == value.shape == (4, 3, 2)
    assert attention.output(torch.zeros(5, 6)).shape == (5, 12)
    with torch.no_grad():
        attention.key_value.bias.copy_(torch.arange(12.0))
    key, value = attention.project_keys(torch.zeros(1, 8))
    assert key.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert value.flatten().tolist() == [6, 7, 8, 9, 10, 11]
