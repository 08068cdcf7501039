"""The linear layer: on a CPU by the fastest library and type, with the numbers of torch's, and without growth."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.models import kernels
from vlp.models import linear as module
from vlp.models.linear import Linear, linear

SHAPES = {"wider": (24, 96), "narrower": (96, 24), "square": (32, 32)}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x,
    "every other row": lambda x: x[::2],
    "some columns": lambda x: torch.cat([x, x], 1)[:, 3 : 3 + x.shape[1]],
    "turned": lambda x: x.t().contiguous().t(),
    "one row over and over": lambda x: x[:1].expand(len(x), -1),
    "in groups": lambda x: x.unflatten(0, (5, -1)).transpose(0, 1),
    "one vector": lambda x: x[0],
}
pytestmark = pytest.mark.skipif(not module._HAS_ONEDNN, reason="torch here has no oneDNN, or the CPU no AVX")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """All sizes by oneDNN; the shapes of what it multiplied."""
    done: list[tuple[int, ...]] = []
    product = module._onednn
    monkeypatch.setattr(module, "_FEWEST", 1)
    monkeypatch.setattr(module, "_TURNS", True)
    monkeypatch.setattr(module, "_onednn", lambda x, *rest: done.append(tuple(x.shape)) or product(x, *rest))
    return done


def made(shape: str) -> tuple[Tensor, Tensor, Tensor]:
    width, out = SHAPES[shape]
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=draw) for size in ((35, width), (out, width), (out,)))
    return x, weight, bias


def results(
    given: tuple[Tensor, ...],
    kind: torch.dtype,
    layout: Callable[[Tensor], Tensor] = LAYOUTS["rows"],
    wanted: str = "xwb",
) -> list[Tensor]:
    """The output, and the gradients of those that are wanted."""
    leaves = [t.to(kind, copy=True).requires_grad_(name in wanted) for name, t in zip("xwb", given, strict=False)]
    out = linear(layout(leaves[0]), *leaves[1:])
    weights = torch.linspace(-1, 1, out.numel()).bfloat16().to(kind).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), [t for t in leaves if t.requires_grad])]


def alike(mine: list[Tensor], exact: list[Tensor]) -> None:
    for own, theirs in zip(mine, exact, strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own.double(), theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_and_gradients_are_those_of_double_precision(
    shape: str, layout: str, products: list[tuple[int, ...]]
) -> None:
    given = made(shape)
    mine = results(given, torch.float32, LAYOUTS[layout])
    assert len(products) == 2 + (shape == "narrower")  # forward, the rows' gradient; the weight's where that is faster
    alike(mine, results(given, torch.float64, LAYOUTS[layout]))


@pytest.mark.parametrize("layout", ["rows", "turned", "in groups"])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_avx512_turned_factors_are_torchs(
    shape: str, layout: str, products: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TURNS", False)
    given = made(shape)
    mine = results(given, torch.float32, LAYOUTS[layout])
    assert len(products) == (layout == "rows")
    alike(mine, results(given, torch.float64, LAYOUTS[layout]))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_type_that_the_cpu_does_not_multiply_is_multiplied_in_fp32(
    shape: str, kind: torch.dtype, products: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tuple(t.to(kind) for t in made(shape))
    monkeypatch.setattr(kernels, "_SLOW", frozenset({kind}))
    mine = results(given, kind)
    assert len(products) == 2 + (shape == "narrower")
    for own, exact in zip(mine, results(given, torch.float64), strict=True):
        assert own.dtype == kind
        torch.testing.assert_close(own.double(), exact, atol=1e-2, rtol=2 * torch.finfo(kind).eps)
    monkeypatch.setattr(kernels, "_SLOW", frozenset())
    results(given, kind)
    assert len(products) == 2 + (shape == "narrower")


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xb", "wb"])
def test_only_wanted_gradients_are_made(wanted: str, products: list[tuple[int, ...]]) -> None:
    given = made("narrower")
    mine = results(given, torch.float32, wanted=wanted)
    assert len(products) == 1 + len(set(wanted) - {"b"})
    alike(mine, results(given, torch.float64, wanted=wanted))


@pytest.mark.parametrize(("wanted", "kept"), [("xwb", {"x", "w"}), ("xb", {"w"}), ("wb", {"x"}), ("b", set())])
def test_only_what_backward_reads_is_kept(wanted: str, kept: set[str]) -> None:
    leaves = {n: t.requires_grad_(n in wanted) for n, t in zip("xwb", made("wider"), strict=True)}
    found = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t.data_ptr()) or t, lambda t: t):
        linear(*leaves.values())
    assert set(found) == {leaves[name].data_ptr() for name in kept}


def test_a_gradient_may_be_one_number_over_and_over(products: list[tuple[int, ...]]) -> None:
    x, weight, bias = (t.requires_grad_() for t in made("narrower"))
    found = torch.autograd.grad(linear(x, weight, bias).sum(), (x, weight, bias))
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    alike(list(found), list(torch.autograd.grad(F.linear(*exact).sum(), exact)))
    assert len(products) == 3


def test_under_autocast_and_in_an_export_it_is_torchs() -> None:
    layer, (x, *_) = Linear(24, 96), made("wider")
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    rows = torch.export.Dim("rows", min=2, max=1_000_000)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: rows},)).module()
    torch.testing.assert_close(exported(x[:7]), layer(x[:7]))


def test_it_needs_no_bias(products: list[tuple[int, ...]]) -> None:
    x, weight, _ = made("wider")
    alike(results((x, weight), torch.float32), results((x, weight), torch.float64))
    assert products


def test_small_products_and_other_precisions_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = made("wider")
    by_torch = []
    theirs = F.linear
    monkeypatch.setattr(kernels, "_SLOW", frozenset())
    monkeypatch.setattr(F, "linear", lambda x, *rest: by_torch.append(len(x)) or theirs(x, *rest))
    for kind in (torch.bfloat16, torch.float64):
        assert linear(x.to(kind), weight.to(kind), bias.to(kind)).dtype == kind
    assert linear(x.to("meta"), weight.to("meta")).shape == (35, 96)
    monkeypatch.setattr(module, "_FEWEST", 35 * 24 * 96 + 1)
    linear(x, weight, bias)
    assert by_torch == [35] * 4
    monkeypatch.setattr(module, "_FEWEST", 35 * 24 * 96)
    linear(x, weight, bias)
    assert by_torch == [35] * 4


def test_the_order_of_gradients_does_not_depend_on_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEWEST", 35 * 24 * 96)
    x, weight, bias = made("wider")
    orders = []
    for rows in (0, 1, 35):
        order: list[str] = []
        leaves = {name: t.clone().requires_grad_() for name, t in (("x", x[:rows]), ("weight", weight), ("bias", bias))}
        for name, leaf in leaves.items():
            leaf.register_hook(lambda _, name=name, order=order: order.append(name))
        linear(*leaves.values()).sum().backward()
        orders.append((order, [leaf.grad.shape for leaf in leaves.values()][1:]))
    assert orders == [orders[0]] * 3


def test_the_layer_is_one_of_torchs(products: list[tuple[int, ...]]) -> None:
    layer = Linear(24, 96)
    theirs = torch.nn.Linear(24, 96)
    theirs.load_state_dict(layer.state_dict())
    x = made("wider")[0]
    torch.testing.assert_close(layer(x), theirs(x))
    assert products == [(35, 24)]


GROWING = """
import os, sys, torch
from pathlib import Path
from vlp.models import linear as linear_module
from vlp.models.linear import linear

def resident():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")

linear_module._FEWEST = 1
weight = torch.zeros(64, 64, dtype=getattr(torch, sys.argv[1]))
for rows in range(300, 1100):
    linear(weight.new_zeros(rows, 64), weight)
    if rows == 310:
        before = resident()
print(resident() - before)
"""


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_kernels_of_numbers_of_rows_that_come_once_are_not_kept(kind: str) -> None:
    unset = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    grown = [
        int(subprocess.run([sys.executable, "-c", GROWING, kind], env=env, capture_output=True, check=True).stdout)
        for env in (unset, unset | {"LRU_CACHE_CAPACITY": "1024", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"})
    ]
    assert grown[1] > 100_000_000
    assert grown[0] < grown[1] / 2
