"""Checkpoints and configs that do not fit: what is wrong is listed, and nothing is written."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.examples import shipped
from tests.unit.converting import BERT, back, published, there, write_official
from vlp import resources
from vlp.convert import convert
from vlp.errors import CheckpointError, ConfigError
from vlp.models.convert.account import plan_of
from vlp.models.convert.family import read_official
from vlp.models.convert.registry import FAMILIES, family_of


@pytest.fixture
def official(tmp_path: Path) -> Any:
    return partial(write_official, tmp_path)


SPOILT = {
    "missing": ("uniter.pooler.dense.bias", "missing: uniter.pooler.dense.bias"),
    "part of a head missing": ("itm_output.bias", "missing: itm_output.bias"),
    "part of a stack missing": (
        "uniter.encoder.layer.1.attention.self.value.weight",
        "missing: uniter.encoder.layer.1.attention.self.value.weight",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_missing_tensors_are_listed(case: str, official: Any, tmp_path: Path) -> None:
    name, sentence = SPOILT[case]
    config, file = official("uniter"), tmp_path / "theirs.safetensors"
    tensors = published("uniter", config)
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=sentence) as raised:
        there("uniter", file, config, tmp_path / "ours")
    assert str(file) in str(raised.value)
    assert not (tmp_path / "ours").exists()


def test_missing_surplus_and_misshapen_are_listed_together(official: Any, tmp_path: Path) -> None:
    config, file = official("uniter"), tmp_path / "theirs.safetensors"
    tensors = published("uniter", config)
    del tensors["uniter.pooler.dense.bias"]
    tensors["vqa_output.0.weight"] = torch.zeros(1)
    tensors["itm_output.weight"] = torch.zeros(2, 17)
    save_file(tensors, file)
    sentence = (
        r"does not fit its config; missing: uniter\.pooler\.dense\.bias; surplus: vqa_output\.0\.weight; "
        r"of another shape: itm_output\.weight is \[2, 17\] and should be \[2, 16\]"
    )
    with pytest.raises(CheckpointError, match=sentence):
        there("uniter", file, config, tmp_path / "ours")


def test_a_never_used_tensor_must_be_whole_too(official: Any, tmp_path: Path) -> None:
    config, file = official("vilbert"), tmp_path / "theirs.safetensors"
    tensors = published("vilbert", config)
    tensors["bert.encoder.c_layer.1.biOutput.q_dense2.bias"] = torch.zeros(3)
    del tensors["bert.encoder.c_layer.0.biOutput.q_dense1.weight"]
    save_file(tensors, file)
    with pytest.raises(
        CheckpointError, match=r"missing: .*q_dense1\.weight; of another shape: .*q_dense2\.bias is \[3\]"
    ):
        there("vilbert", file, config, tmp_path / "ours")


def test_another_size_names_the_first_tensors(official: Any, tmp_path: Path) -> None:
    config, file = official("uniter"), tmp_path / "theirs.safetensors"
    save_file(published("uniter", config), file)
    larger = official("uniter", official_config={**BERT, "hidden_size": 32})
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight is \[30, 16\] and should be \[30, 32\].* more"):
        there("uniter", file, larger, tmp_path / "ours")
    deeper = official("uniter", official_config={**BERT, "num_hidden_layers": 3})
    with pytest.raises(CheckpointError, match=r"missing: uniter\.encoder\.layer\.2\."):
        there("uniter", file, deeper, tmp_path / "ours")


def test_another_number_of_classes_is_refused_with_both_numbers(official: Any, tmp_path: Path) -> None:
    config, file = official("uniter"), tmp_path / "theirs.safetensors"
    save_file(published("uniter", config), file)
    with pytest.raises(CheckpointError, match="head mrc has 5 classes and should have 8"):
        there("uniter", file, official("uniter", img_label_dim=8), tmp_path / "ours")


class Trap:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch sprung",)


def test_a_pickle_with_code_is_refused_unread(official: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, file = official("uniter"), tmp_path / "theirs.pt"
    torch.save({**published("uniter", config), "trap": Trap()}, file)
    with pytest.raises(CheckpointError, match="refused, since it may hold code"):
        there("uniter", file, config, tmp_path / "ours")
    assert not (tmp_path / "sprung").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "neither way": ({}, "needs --from NAME FILE or --to NAME DIR"),
    "both ways": ({"source": "uniter", "target": "uniter"}, "needs --from NAME FILE or --to NAME DIR"),
    "no config": ({"source": "uniter"}, "--from needs --config CONFIG or --official-config FILE"),
    "two configs": (
        {"source": "uniter", "config": "uniter_base", "official": Path("x.json")},
        "--from needs --config CONFIG or --official-config FILE, one of them",
    ),
    "a config on the way back": ({"target": "uniter", "config": "uniter_base"}, "--to takes the model's own config"),
    "an unknown kind": (
        {"source": "unitter", "config": "uniter_base"},
        r"--from: no checkpoints are called 'unitter' \(did you mean 'uniter'\?\)",
    ),
    "an unknown kind on the way back": ({"target": "clip"}, "--to: no checkpoints are called 'clip'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_do_not_go_together(case: str, tmp_path: Path) -> None:
    options, sentence = REFUSED[case]
    given = {"source": None, "target": None, "config": None, "official": None, **options}
    with pytest.raises(ConfigError, match=sentence):
        convert(tmp_path / "x", out=tmp_path / "y", **given)


def test_a_config_with_auto_sizes_is_refused(official: Any, tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file(published("uniter", official("uniter")), file)
    with pytest.raises(ConfigError, match="has sizes that are auto"):
        convert(file, source="uniter", target=None, config="uniter_tiny", official=None, out=tmp_path / "ours")


def test_an_authors_config_that_lacks_a_key_is_refused(official: Any, tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file(published("uniter", official("uniter")), file)
    config = official("uniter", official_config={k: v for k, v in BERT.items() if k != "hidden_size"})
    with pytest.raises(ConfigError, match=r"uniter\.json: key 'hidden_size' is missing"):
        there("uniter", file, config, tmp_path / "ours")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("fusion_method", "text", r"vilbert\.json: fusion_method is 'text', it should be one of mul, sum"),
        ("dynamic_attention", True, r"vilbert\.json: dynamic_attention is True"),
    ],
)
def test_what_the_blocks_cannot_say_is_refused(key: str, value: Any, sentence: str, official: Any) -> None:
    with pytest.raises(ConfigError, match=sentence):
        family_of("vilbert", "--from").config(read_official(official("vilbert", **{key: value})))


def test_a_model_of_another_architecture_has_no_place(official: Any, tmp_path: Path) -> None:
    config, file = official("uniter"), tmp_path / "theirs.safetensors"
    tensors = published("uniter", config)
    save_file(tensors, file)
    there("uniter", file, config, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="have no place for the head 'mrfr'"):
        back("visualbert", tmp_path / "ours", tmp_path / "back.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name.startswith("uniter.")}, file)
    there("uniter", file, config, tmp_path / "ours")
    with pytest.raises(CheckpointError, match=r"have no place for image.* of the model; is the config of another arch"):
        back("visualbert", tmp_path / "ours", tmp_path / "back.safetensors")


@pytest.mark.parametrize("name", [name for name in resources.names("model") if name.endswith("_tiny")])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_config_of_another_architecture_is_refused_with_a_sentence(kind: str, name: str) -> None:
    family, config = family_of(kind, "--from"), shipped(name)
    # All that the other one has, this one has too; a checkpoint's further tensors are refused as surplus.
    part = (kind, name) == ("uniter", "unicoder_vl_tiny")
    if part or name.removesuffix("_tiny") == kind.removeprefix("hf-"):
        assert plan_of(family, config, "here").their_shapes()
        return
    with pytest.raises(CheckpointError, match=r"no place for .* of the model; is the config of another architecture\?"):
        plan_of(family, config, "here")
