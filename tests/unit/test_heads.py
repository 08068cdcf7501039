"""Heads: their layers, whose weights they read, and what happens on zero rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.examples import REGION_WIDTH, SMALL, VOCABULARY, batch_of, shaken, shipped
from vlp.errors import ConfigError
from vlp.models.heads import ClassHead, FeatureHead, Head, HeadConfig, VocabularyHead
from vlp.models.model import ModelConfig, Network

HEADS: dict[str, HeadConfig] = {
    "words": VocabularyHead(),
    "match": ClassHead(reads="example", classes=2),
    "classes": ClassHead(reads="image", classes=5, inner="same"),
    "answers": ClassHead(reads="example", classes=6, inner="double"),
    "feature": FeatureHead(width=REGION_WIDTH),
    "tied": FeatureHead(width=REGION_WIDTH, tied=True),
}
OUTPUTS = {"words": VOCABULARY, "match": 2, "classes": 5, "answers": 6, "feature": REGION_WIDTH, "tied": REGION_WIDTH}


def model_of() -> Network:
    config = shipped("uniter_tiny", *SMALL, "encoder.0.repeat=1").model_copy(update={"heads": HEADS})
    model = shaken(Network(config))
    assert isinstance(model, Network)
    return model


def head_of(model: Network, name: str) -> Any:
    head = model.heads[name]
    assert isinstance(head, Head)
    return head


@pytest.mark.parametrize("name", HEADS)
def test_shapes_and_zero_rows(name: str) -> None:
    model = model_of()
    head = head_of(model, name)
    assert head(torch.randn(4, 16)).shape == (4, OUTPUTS[name])
    nothing = head(torch.randn(0, 16))
    assert nothing.shape == (0, OUTPUTS[name])
    nothing.sum().backward()
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()


def test_words_are_scored_by_the_word_table_itself() -> None:
    model, x = model_of(), torch.randn(4, 16)
    head, table = head_of(model, "words"), model.text.words.weight
    linear, norm = head.transform.linear, head.transform.norm
    inner = F.layer_norm(F.gelu(F.linear(x, linear.weight, linear.bias)), (16,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(head(x), inner @ table.T + head.bias)
    before = head(x)
    with torch.no_grad():
        table.add_(1)
    assert not torch.equal(head(x), before)
    head(x).square().sum().backward()
    assert table.grad is not None
    assert table.grad.abs().sum() > 0


def test_tied_features_go_back_through_the_feature_projection() -> None:
    model, x = model_of(), torch.randn(4, 16)
    head, projection = head_of(model, "tied"), model.image.parts["feature"].linear
    torch.testing.assert_close(head(x), head.transform(x) @ projection.weight + head.bias)
    head(x).square().sum().backward()
    assert projection.weight.grad.abs().sum() > 0


def test_a_tied_weight_is_registered_once() -> None:
    names = dict(model_of().named_parameters(remove_duplicate=False))
    layers = ("bias", "linear.weight", "linear.bias", "norm.weight", "norm.bias")
    for head in ("tied", "words"):
        own = {name.removeprefix(f"heads.{head}.") for name in names if name.startswith(f"heads.{head}.")}
        assert {name.removeprefix("transform.") for name in own} == set(layers)


def test_inner_layers_are_none_the_same_or_twice_as_wide() -> None:
    model = model_of()
    assert isinstance(head_of(model, "match").transform, nn.Identity)
    assert head_of(model, "classes").transform.linear.weight.shape == (16, 16)
    assert head_of(model, "answers").transform.linear.weight.shape == (32, 16)
    assert head_of(model, "answers").output.weight.shape == (6, 32)


def test_heads_read_their_own_stream_s_width() -> None:
    wide = '{"width": 24, "heads": 2, "ffn": 8}'
    config = shipped("lxmert_tiny", *SMALL, f"image.layer={wide}", "encoder=[{stream: text, sublayers: [ffn]}]")
    model = Network(config.model_copy(update={"heads": HEADS}))
    widths = {name: head.transform.linear.in_features for name, head in model.heads.items() if name != "match"}
    assert widths == {"words": 16, "classes": 24, "answers": 16, "feature": 24, "tied": 24}
    encoded = model(batch_of([(3, 2)]))
    assert model.heads["tied"](encoded.image_MH).shape == (2, REGION_WIDTH)
    assert model.heads["match"](encoded.pooled_BH).shape == (1, 2)


def test_inner_layers_of_another_head() -> None:
    heads: dict[str, HeadConfig] = {
        "second": ClassHead(reads="image", classes=3, inner="same", inner_of="first"),
        "first": ClassHead(reads="image", classes=5, inner="same"),
        "third": FeatureHead(width=REGION_WIDTH, inner_of="first"),
    }
    config = shipped("uniter_tiny", *SMALL, "encoder.0.repeat=1").model_copy(update={"heads": heads})
    model = shaken(Network(config))
    assert isinstance(model, Network)
    names = {name for name in model.state_dict() if name.startswith("heads.") and "transform" in name}
    assert {name.split(".")[1] for name in names} == {"first"}
    x = torch.randn(4, 16)
    inner = head_of(model, "first").transform(x)
    for name in heads:
        torch.testing.assert_close(model.heads[name](x), head_of(model, name).output(inner))
    model.heads["third"](x).sum().backward()
    assert head_of(model, "first").transform.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "owner", ["nobody", "itself", "a borrower", "of other rows"], ids=lambda case: str(case).replace(" ", "-")
)
def test_inner_layers_that_are_not_there_are_refused(owner: str) -> None:
    named = {"nobody": "none", "itself": "head", "a borrower": "borrower", "of other rows": "example"}[owner]
    heads = {
        "head": {"kind": "classes", "reads": "image", "classes": 2, "inner": "same", "inner_of": named},
        "borrower": {"kind": "classes", "reads": "image", "classes": 2, "inner": "same", "inner_of": "first"},
        "first": {"kind": "classes", "reads": "image", "classes": 2, "inner": "same"},
        "example": {"kind": "classes", "reads": "example", "classes": 2, "inner": "same"},
    }
    values = {**shipped("uniter_tiny", *SMALL).plain(), "heads": heads}
    with pytest.raises(ConfigError, match=rf"heads\.head\.inner_of: '{named}' is no head with inner layers of its own"):
        ModelConfig.parse(values, "test")


@pytest.mark.parametrize(("norm", "names"), [("before_activation", {"linear", "norm"}), ("none", {"linear"})])
def test_where_the_inner_norm_stands(norm: Any, names: set[str]) -> None:
    config = ClassHead(reads="example", classes=3, inner="same", norm=norm, activation="relu", eps=0.5)
    head = shaken(Head(config, 4, 1e-12, None))
    x = torch.randn(5, 4)
    inner = head.transform.linear(x)  # type: ignore[operator, union-attr]
    if norm == "before_activation":
        own = head.transform.norm  # type: ignore[union-attr]
        inner = F.layer_norm(inner, (4,), own.weight, own.bias, 0.5)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(head(x), head.output(torch.relu(inner)))  # type: ignore[operator]
    assert {name.split(".")[1] for name in head.state_dict() if name.startswith("transform")} == names


def test_rows_that_stand_together_are_one_input() -> None:
    head = shaken(Head(ClassHead(reads="example", classes=3, inner="same", join=2), 4, 1e-5, None))
    x = torch.randn(6, 4)
    assert head(x).shape == (3, 3)
    torch.testing.assert_close(head(x)[1:2], head(x[2:4]))
    assert head(x[:0]).shape == (0, 3)


def test_a_decoder_of_its_own_has_the_vocabulary_s_rows() -> None:
    config = shipped("uniter_tiny", *SMALL).model_copy(update={"heads": {"words": VocabularyHead(tied=False)}})
    model = Network(config)
    assert head_of(model, "words").output.weight.shape == (VOCABULARY, 16)
    assert head_of(model, "words").output.weight is not model.text.words.weight
