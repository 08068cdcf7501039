"""On a CPU that has no products of a type below fp32 they are made in fp32, ours and those of networks that are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vlp.data.packing import pack
from vlp.models import kernels
from vlp.models.adapters import AdapterConfig, add_adapters
from vlp.models.attention import Implementation, attend
from vlp.models.backbone import Backbone, PixelSource
from vlp.models.crossentropy import linear_cross_entropy
from vlp.models.kernels import product_type, standing_for, wide_products
from vlp.models.linear import Linear

BF16 = torch.bfloat16


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without products of bf16."""
    monkeypatch.setattr(kernels, "_SLOW", frozenset({BF16}))


class _Multiplied(TorchDispatchMode):
    """The types of what is multiplied within it, in backward too."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket.__name__ in {"mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "convolution"}:
            self.types.add(args[-1 if func.overloadpacket.__name__ in {"mm", "bmm"} else 1].dtype)
        return func(*args, **(kwargs or {}))


def test_a_type_that_is_not_multiplied_is_fp32_on_a_cpu(slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (BF16, torch.float16, torch.float32, torch.float64)
    assert [product_type(torch.ones(1, dtype=kind)) for kind in kinds] == [torch.float32, *kinds[1:]]
    meta = torch.ones(1, dtype=BF16, device="meta")
    assert product_type(meta) == BF16
    with standing_for("cpu"):
        assert product_type(meta) == torch.float32
    monkeypatch.setattr(kernels, "_SLOW", frozenset())
    assert product_type(torch.ones(1, dtype=BF16)) == BF16


@pytest.mark.parametrize("lengths", [[3, 1, 4], [40, 60], [130, 150]], ids=["padded", "one by one", "long ones"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "reference"])
def test_attention(slow: None, lengths: list[int], biased: bool, implementation: Implementation) -> None:
    packing = pack(lengths)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(packing.tokens, 4, 8, generator=draw).to(BF16).requires_grad_() for _ in range(3)]
    bias = torch.randn(len(lengths), 4, max(lengths), max(lengths), generator=draw).to(BF16) if biased else None
    exact = [x.detach().double().requires_grad_() for x in inputs]
    with _Multiplied() as seen:
        out = attend(*inputs, packing, packing, bias=bias, implementation=implementation)
        mine = torch.autograd.grad(out.sum(), inputs)
    assert out.dtype == BF16
    assert BF16 not in seen.types
    wanted = attend(*exact, packing, packing, bias=None if bias is None else bias.double())
    for own, other in zip([out, *mine], [wanted, *torch.autograd.grad(wanted.sum(), exact)], strict=True):
        assert own.dtype == BF16
        torch.testing.assert_close(own.double(), other, atol=2e-2, rtol=2e-2)


def test_cross_entropy(slow: None) -> None:
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(*size, generator=draw).to(BF16).requires_grad_() for size in ((20, 8), (30, 8), (30,))]
    labels = torch.randint(0, 30, (20,), generator=draw)
    exact = [x.detach().double().requires_grad_() for x in given]
    found = []
    with _Multiplied() as seen:
        for leaves in (given, exact):
            total, _ = linear_cross_entropy(*leaves, labels)
            found.append([total, *torch.autograd.grad(total, leaves)])
    assert seen.types == {torch.float32, torch.float64}
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), theirs, atol=3e-2, rtol=3e-2)


def backbone(name: str, **source: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(PixelSource.parse({"kind": "pixels", "backbone": name, "size": 32, **source})).to(BF16)


@pytest.mark.parametrize(
    "source",
    [
        {"name": "vit_tiny_patch16_224", "take": "tokens", "arguments": {"depth": 2}},
        {"name": "test_resnet"},
        {"name": "test_vit", "take": "tokens", "checkpointing": True},
    ],
    ids=["transformer", "convolutions", "recomputed"],
)
def test_a_backbone(slow: None, source: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = backbone(**source), torch.rand(2, 3, 32, 32).to(BF16)
    assert not any(type(module) is nn.Linear for module in model.modules())
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    results, seen = [], []
    for here in (frozenset({BF16}), frozenset()):
        monkeypatch.setattr(kernels, "_SLOW", here)
        with _Multiplied() as multiplied:
            out = model(pixels)
            factor = torch.linspace(-1, 1, out.shape[-1]) ** 3
            results.append([out, *torch.autograd.grad((out.float() * factor).sum(), weights)])
        seen.append(multiplied.types)
    wide, plain = results
    if not source.get("checkpointing"):
        assert seen == [{torch.float32}, {BF16}]
    for own, other in zip(wide, plain, strict=True):
        assert own.dtype == BF16
        assert (own.float() - other.float()).norm() < 0.05 * other.float().norm() + 1e-3


def test_what_is_kept_for_backward_is_what_was_given(slow: None) -> None:
    x, weight = (torch.randn(*size).to(BF16).requires_grad_() for size in ((2, 3, 8, 8), (4, 3, 3, 3)))
    with wide_products(x):
        out = F.conv2d(x, weight)
    node = out.grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    kept = [node._raw_saved_input.data[0], node._raw_saved_weight.data[0]]  # type: ignore[union-attr]
    assert all(torch.equal(own, given) for own, given in zip(kept, (x, weight), strict=True))
    assert [tensor.dtype for tensor in kept] == [BF16, BF16]


@pytest.mark.parametrize("kind", ["lora", "lokr", "ia3"])
def test_adapters(slow: None, kind: Any) -> None:
    pytest.importorskip("peft")
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"one": Linear(32, 48)})})
    add_adapters(model, AdapterConfig(kind=kind))  # type: ignore[arg-type]
    layer = model["encoder"]["one"].to(BF16)
    with _Multiplied() as seen:
        out = layer(torch.randn(5, 32).to(BF16))
        out.sum().backward()
    assert out.dtype == BF16
    assert seen.types == {torch.float32}
    with pytest.raises(RuntimeError):
        layer(torch.randn(5, 31).to(BF16))
    assert not torch.overrides._get_current_function_mode_stack()


def test_what_is_not_slow_is_left_alone(slow: None) -> None:
    assert isinstance(wide_products(torch.ones(1, dtype=BF16)), TorchFunctionMode)
    for kind in (torch.float32, torch.float16):
        assert not isinstance(wide_products(torch.ones(1, dtype=kind)), TorchFunctionMode)
