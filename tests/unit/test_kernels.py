"""On a CPU that has no products of a type below fp32 they are made in fp32, ours and those of networks that are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlp.data.packing import pack
from vlp.models import kernels
from vlp.models.attention import Implementation, attend
from vlp.models.backbone import Backbone, PixelSource
from vlp.models.crossentropy import linear_cross_entropy
from vlp.models.kernels import product_type, wide_products

BF16 = torch.bfloat16


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without products of bf16."""
    monkeypatch.setattr(kernels, "_SLOW", frozenset({BF16}))


class _Seen(TorchFunctionMode):
    """The types of what is multiplied within it."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in kernels._PRODUCTS:
            self.types.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_a_type_that_is_not_multiplied_is_fp32_on_a_cpu(slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (BF16, torch.float16, torch.float32, torch.float64)
    assert [product_type(torch.ones(1, dtype=kind)) for kind in kinds] == [torch.float32, *kinds[1:]]
    assert product_type(torch.ones(1, dtype=BF16, device="meta")) == BF16
    monkeypatch.setattr(kernels, "_SLOW", frozenset())
    assert product_type(torch.ones(1, dtype=BF16)) == BF16


@pytest.mark.parametrize("lengths", [[3, 1, 4], [40, 60]], ids=["padded", "one by one"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "reference"])
def test_attention(slow: None, lengths: list[int], biased: bool, implementation: Implementation) -> None:
    packing = pack(lengths)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(packing.tokens, 4, 8, generator=draw).to(BF16).requires_grad_() for _ in range(3)]
    bias = torch.randn(len(lengths), 4, max(lengths), max(lengths), generator=draw).to(BF16) if biased else None
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with _Seen() as seen:
        out = attend(*inputs, packing, packing, bias=bias, implementation=implementation)
    assert out.dtype == BF16
    assert seen.types <= {torch.float32}
    wanted = attend(*exact, packing, packing, bias=None if bias is None else bias.double())
    torch.testing.assert_close(out.double(), wanted, atol=1e-2, rtol=1e-2)
    for mine, theirs in zip(
        *(torch.autograd.grad(o.sum(), x) for o, x in ((out, inputs), (wanted, exact))), strict=True
    ):
        assert mine.dtype == BF16
        torch.testing.assert_close(mine.double(), theirs, atol=2e-2, rtol=2e-2)


def test_cross_entropy(slow: None) -> None:
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(*size, generator=draw).to(BF16).requires_grad_() for size in ((20, 8), (30, 8), (30,))]
    labels = torch.randint(0, 30, (20,), generator=draw)
    exact = [x.detach().double().requires_grad_() for x in given]
    found = []
    for leaves in (given, exact):
        total, _ = linear_cross_entropy(*leaves, labels)
        found.append([total, *torch.autograd.grad(total, leaves)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=3e-2, rtol=3e-2)


@pytest.fixture
def backbone() -> Backbone:
    source = {"kind": "pixels", "backbone": "vit_tiny_patch16_224", "take": "tokens", "size": 32}
    torch.manual_seed(0)
    return Backbone(PixelSource.parse({**source, "arguments": {"depth": 2}})).to(BF16)


def test_a_backbone(slow: None, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.rand(2, 3, 32, 32).to(BF16)
    inner = next(module for module in backbone.modules() if isinstance(module, nn.Linear))
    weights = torch.linspace(-1, 1, 192) ** 3
    results: list[Tensor] = []
    kinds = []
    for here in (frozenset({BF16}), frozenset()):
        monkeypatch.setattr(kernels, "_SLOW", here)
        with _Seen() as seen:
            out = backbone(pixels)
        assert out.dtype == BF16
        kinds.append(seen.types)
        results += [out, *torch.autograd.grad((out.float() * weights).sum(), [inner.weight])]
    assert kinds == [{torch.float32}, {BF16}]
    for mine, plain in zip(results[:2], results[2:], strict=True):
        assert mine.dtype == BF16
        assert (mine.float() - plain.float()).norm() < 0.03 * plain.float().norm()


def test_what_is_not_slow_is_left_alone(slow: None) -> None:
    assert isinstance(wide_products(torch.ones(1, dtype=BF16)), TorchFunctionMode)
    for kind in (torch.float32, torch.float16):
        assert not isinstance(wide_products(torch.ones(1, dtype=kind)), TorchFunctionMode)
