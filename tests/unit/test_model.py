"""The whole model: initial weights, parameter counts, saving and loading, sizes that the data fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.examples import CLASSES, REGION_WIDTH, SIZES, SMALL, VOCABULARY, batch_of, shaken, shipped
from vlp import resources
from vlp.config import read_yaml
from vlp.errors import CheckpointError, ConfigError
from vlp.models.heads import ClassHead, FeatureHead, HeadConfig, VocabularyHead
from vlp.models.model import (
    ModelConfig,
    Network,
    Sizes,
    fill_sizes,
    meta_model,
    read_config,
)

HEADS: dict[str, HeadConfig] = {
    "mlm": VocabularyHead(),
    "itm": ClassHead(reads="example", classes=2),
    "mrfr": FeatureHead(width=REGION_WIDTH, tied=True),
}


def model_of(family: str = "lxmert_tiny", *overrides: str) -> Network:
    config = shipped(family, *SMALL, *overrides).model_copy(update={"heads": HEADS})
    model = shaken(Network(config))
    assert isinstance(model, Network)
    return model


# ------------------------------------------------------------------------------------------------ shipped configs


@pytest.mark.parametrize("name", resources.names("model"))
def test_every_shipped_model_can_be_built(name: str) -> None:
    config = ModelConfig.parse(read_yaml(resources.shipped("model", name)), name)
    auto = config.text.vocab_size == "auto"
    model = meta_model(fill_sizes(config, SIZES) if auto else config)
    assert all(parameter.is_meta for parameter in model.parameters())
    # What stands in the file survives being written and read again.
    assert ModelConfig.parse(json.loads(json.dumps(config.plain())), name) == config


# ------------------------------------------------------------------------------------------------- initial weights


def test_initial_weights() -> None:
    config = shipped("uniter_tiny", "init_std=0.1").model_copy(update={"heads": HEADS})
    model = Network(config)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            bound = 5 / module.weight.numel() ** 0.5  # of what the deviation of so many draws differs by
            assert module.weight.std().item() == pytest.approx(0.1, rel=bound), name
        if isinstance(module, nn.Linear):
            assert (module.bias == 0).all(), name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
    hidden = model.image.parts["feature"].hidden
    assert hidden[1].std().item() == pytest.approx(0.1, abs=0.07)
    assert (hidden[0] == 0).all()


def test_pooled_is_the_first_token_through_linear_and_its_activation() -> None:
    for activation in ("tanh", "relu"):
        model = model_of("uniter_tiny", f"pooler.activation={activation}").eval()
        batch = batch_of([(4, 2), (3, 0), (5, 1)])
        encoded = model(batch)
        linear = model.pooler.linear["text"](encoded.text_NH[[0, 4, 7]])
        torch.testing.assert_close(encoded.pooled_BH, linear.tanh() if activation == "tanh" else linear.clamp(min=0))


# ---------------------------------------------------------------------------------------------- saving and loading


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = model_of().eval()
    model.save_pretrained(tmp_path / "new" / "model")
    loaded = Network.from_pretrained(tmp_path / "new" / "model")
    assert not loaded.training
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    batch = batch_of([(4, 3), (5, None)])
    assert torch.equal(loaded(batch).text_NH, model(batch).text_NH)
    # Still tied: the head follows its owner.
    with torch.no_grad():
        loaded.text.words.weight.zero_()
    assert (loaded.heads["mlm"](torch.randn(2, 16)) == loaded.heads["mlm"].bias).all()


def test_weights_are_saved_in_fp32(tmp_path: Path) -> None:
    model_of().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def spoil(directory: Path, how: str) -> None:
    weights, config = directory / "model.safetensors", directory / "config.json"
    tensors = load_file(weights)
    values = json.loads(config.read_text())
    if how == "no config":
        config.unlink()
    elif how == "no weights":
        weights.unlink()
    elif how == "not JSON":
        config.write_text("{")
    elif how == "nested without end":
        config.write_text("[" * 100_000)
    elif how == "unknown key":
        config.write_text(json.dumps({**values, "droput": 0.1}))
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "missing tensor":
        save_file({name: t for name, t in tensors.items() if name != "pooler.linear.text.bias"}, weights)
    elif how == "surplus tensor":
        save_file({**tensors, "pooler.extra": torch.zeros(1)}, weights)
    elif how == "another shape":
        save_file({**tensors, "pooler.linear.text.bias": torch.zeros(17)}, weights)


WRONG = {
    "no config": "config.json: not the config of a model: .*No such file",
    "no weights": "model.safetensors: cannot be read",
    "not JSON": "config.json: not the config of a model",
    "nested without end": "config.json: not the config of a model: maximum recursion depth",
    "truncated": "model.safetensors: cannot be read",
    "missing tensor": "does not fit config.json: pooler.linear.text.bias is missing",
    "surplus tensor": "does not fit config.json: pooler.extra is surplus",
    "another shape": "does not fit config.json: pooler.linear.text.bias is .17. and should be .16.",
}


@pytest.mark.parametrize("how", WRONG)
def test_a_wrong_file_is_refused_with_a_sentence(tmp_path: Path, how: str) -> None:
    model_of().save_pretrained(tmp_path)
    spoil(tmp_path, how)
    with pytest.raises(CheckpointError, match=WRONG[how]) as raised:
        Network.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_key_of_a_saved_config_is_refused(tmp_path: Path) -> None:
    model_of().save_pretrained(tmp_path)
    spoil(tmp_path, "unknown key")
    with pytest.raises(ConfigError, match=r"config.json: unknown key 'droput' \(did you mean 'dropout'\?\)"):
        Network.from_pretrained(tmp_path)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/config\.json"):
        read_config(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------------ sizes

TINY = ModelConfig.parse(read_yaml(resources.shipped("model", "uniter_tiny")), "uniter_tiny")


def test_auto_sizes_are_filled_in_and_given_ones_kept() -> None:
    filled = fill_sizes(TINY, SIZES)
    source = filled.image.source
    assert (filled.text.vocab_size, source.width, source.classes) == (VOCABULARY, REGION_WIDTH, CLASSES)  # type: ignore[union-attr]
    assert fill_sizes(filled, SIZES) == filled


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (Sizes(99, REGION_WIDTH, CLASSES), "model.text.vocab_size is 23, but the tokenizer has 99; write auto"),
        (Sizes(VOCABULARY, 99, CLASSES), "model.image.source.width is 10, but the shards ha.* 99"),
        (Sizes(VOCABULARY, REGION_WIDTH, 99), "model.image.source.classes is 7, but the shards .* 99"),
    ],
)
def test_a_size_that_the_data_contradict_is_refused_with_both_numbers(found: Sizes, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        fill_sizes(fill_sizes(TINY, SIZES), found)


def test_shards_without_regions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.image.source.kind: 'regions' needs region features"):
        fill_sizes(TINY, Sizes(VOCABULARY, None, None))


def test_shards_without_classes_leave_no_classes_to_guess() -> None:
    for config in (TINY, fill_sizes(TINY, SIZES)):  # auto, and given: an objective that guesses them must refuse
        source = fill_sizes(config, Sizes(VOCABULARY, REGION_WIDTH, None)).image.source
        assert source.classes is None  # type: ignore[union-attr]
