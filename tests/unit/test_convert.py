"""Published checkpoints into models and back: every tensor accounted for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.unit.converting import (
    BERT,
    OFFICIAL,
    SCALES,
    SECOND_NAMES,
    VL_BERT,
    back,
    published,
    record,
    same,
    there,
    write_official,
)
from vlp.cli import app
from vlp.convert import convert
from vlp.models.convert.family import read_official
from vlp.models.convert.names import Rule, Shaped, leading, rules, squares
from vlp.models.convert.registry import FAMILIES, family_of
from vlp.models.model import Network, read_config


@pytest.fixture
def official(tmp_path: Path) -> Any:
    return partial(write_official, tmp_path)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_way_and_back_is_the_identity(kind: str, official: Any, tmp_path: Path) -> None:
    config, file, out = official(kind), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = published(kind, config)
    save_file(tensors, file)
    there(kind, file, config, out)
    model = Network.from_pretrained(out)
    assert model.config.heads.keys() >= {"mlm"}
    assert set(record(out)["tied"]) == set(SECOND_NAMES[kind])
    assert same(back(kind, out, tmp_path / "back.safetensors"), tensors)
    assert same(back(kind, out, tmp_path / "back.pt"), tensors)


def test_every_kind_is_here() -> None:
    assert OFFICIAL.keys() == SECOND_NAMES.keys() == FAMILIES.keys()


def test_what_the_authors_never_use_lies_beside_the_model(official: Any, tmp_path: Path) -> None:
    config, file, out = official("vilbert"), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = published("vilbert", config)
    save_file(tensors, file)
    there("vilbert", file, config, out)
    names = {name for name in tensors if ".q_dense" in name}
    assert len(names) == 8
    assert load_file(out / "unused.safetensors").keys() == names
    assert (
        record(out)["unused"]
        == dict.fromkeys(sorted(names), "the authors' code makes it and never uses it") | record(out)["unused"]
    )
    # Converted again from a file that has none, nothing of it is left.
    save_file(published("visualbert", official("visualbert")), file)
    there("visualbert", file, official("visualbert"), out)
    assert not (out / "unused.safetensors").exists()


def test_wrapped_prefixed_and_half_precision_files_come_back_as_they_were(official: Any, tmp_path: Path) -> None:
    config, file, out = official("uniter"), tmp_path / "theirs.pt", tmp_path / "ours"
    tensors = {f"module.{name}": tensor.half() for name, tensor in published("uniter", config).items()}
    torch.save({"state_dict": tensors, "epoch": 3}, file)
    there("uniter", file, config, out)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float32}
    assert same(back("uniter", out, tmp_path / "back.pt"), tensors)


@pytest.mark.parametrize("heads", [True, False])
def test_what_the_authors_training_code_puts_before_all_names_comes_back(
    heads: bool, official: Any, tmp_path: Path
) -> None:
    config, file, out = official("visualbert"), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = {name: tensor for name, tensor in published("visualbert", config).items() if heads or "cls." not in name}
    for number, prefix in enumerate(("bert.", "module.bert.", "")):
        wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
        save_file(wrapped, file)
        there("visualbert", file, config, out / str(number))
        assert record(out / str(number))["prefix"] == prefix
        assert same(back("visualbert", out / str(number), tmp_path / "back.safetensors"), wrapped)


def test_a_second_name_with_other_numbers_is_kept_and_said(official: Any, tmp_path: Path) -> None:
    config, file, out = official("uniter"), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = published("uniter", config)
    tensors["feat_regress.weight"] = tensors["feat_regress.weight"] + 1
    save_file(tensors, file)
    there("uniter", file, config, out)
    assert "whose numbers here are others" in record(out)["unused"]["feat_regress.weight"]
    assert same(back("uniter", out, tmp_path / "back.safetensors"), tensors)


def test_a_tensor_under_its_second_name_only(official: Any, tmp_path: Path) -> None:
    config, file, out = official("hf-vilt"), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = published("hf-vilt", config)
    del tensors["mlm_score.decoder.bias"]
    save_file(tensors, file)
    there("hf-vilt", file, config, out)
    assert record(out)["renamed"] == {"mlm_score.decoder.bias": "mlm_score.bias"}
    assert torch.equal(load_file(out / "model.safetensors")["heads.mlm.bias"], tensors["mlm_score.bias"])
    assert same(back("hf-vilt", out, tmp_path / "back.safetensors"), tensors)


def test_a_decoder_of_its_own_is_one(official: Any, tmp_path: Path) -> None:
    config, file, out = official("hf-vilt"), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = published("hf-vilt", config)
    tensors["mlm_score.decoder.weight"] = tensors["mlm_score.decoder.weight"] + 1
    save_file(tensors, file)
    there("hf-vilt", file, config, out)
    assert not read_config(out).heads["mlm"].tied  # type: ignore[union-attr]
    assert not record(out)["unused"]
    assert same(back("hf-vilt", out, tmp_path / "back.safetensors"), tensors)


def test_the_library_s_names_are_known_under_the_authors_kind(official: Any, tmp_path: Path) -> None:
    config, file, out = official("hf-vilt"), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = published("hf-vilt", config)
    save_file(tensors, file)
    there("vilt", file, config, out)
    assert record(out)["source"] == "hf-vilt"
    assert same(back("vilt", out, tmp_path / "back.safetensors"), tensors)


def test_from_one_form_to_the_other(official: Any, tmp_path: Path) -> None:
    config, file, out = official("hf-lxmert"), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = published("hf-lxmert", config)
    save_file(tensors, file)
    there("hf-lxmert", file, config, out)
    found = back("lxmert", out, tmp_path / "back.safetensors")
    assert torch.equal(found["bert.pooler.dense.weight"], tensors["lxmert.pooler.dense.weight"])


def test_heads_that_the_file_lacks_are_said(official: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, file, out = official("lxmert"), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = {
        name: tensor
        for name, tensor in published("lxmert", config).items()
        if "decoder_dict.obj" not in name and not name.startswith("answer_head")
    }
    save_file(tensors, file)
    there("lxmert", file, config, out)
    assert record(out)["absent_heads"] == ["obj", "qa"]
    assert "(not in the file: obj, qa)" in capsys.readouterr().out
    heads = read_config(out).heads
    assert (heads["attr"].inner_of, heads["feat"].inner_of) == (None, "attr")
    assert same(back("lxmert", out, tmp_path / "back.safetensors"), tensors)


def test_a_model_of_our_own_gets_official_names(official: Any, tmp_path: Path) -> None:
    config = official("vilbert")
    tensors = published("vilbert", config)
    save_file(tensors, tmp_path / "theirs.safetensors")
    there("vilbert", tmp_path / "theirs.safetensors", config, tmp_path / "ours")
    (tmp_path / "ours" / "conversion.json").unlink()  # as a fine-tuned model's directory
    found = back("vilbert", tmp_path / "ours", tmp_path / "back.safetensors")
    assert same(found, {n: t for n, t in tensors.items() if ".q_dense" not in n and n != SECOND_NAMES["vilbert"][0]})


def test_by_a_config_of_ours(official: Any, tmp_path: Path) -> None:
    config, file = official("vilbert"), tmp_path / "theirs.safetensors"
    tensors = published("vilbert", config)
    save_file(tensors, file)
    there("vilbert", file, config, tmp_path / "first")
    ours = {**read_config(tmp_path / "first").plain(), "heads": {}}
    (tmp_path / "ours.yaml").write_text(json.dumps(ours))
    convert(
        file, source="vilbert", target=None, config=str(tmp_path / "ours.yaml"), official=None, out=tmp_path / "second"
    )
    assert (tmp_path / "first" / "config.json").read_text() == (tmp_path / "second" / "config.json").read_text()


def test_what_the_authors_files_leave_out_is_their_default(official: Any) -> None:
    whole = {**BERT, **VL_BERT, **SCALES, "visual_region_classes": 1601}
    optional = {"with_pooler", "visual_region_classes", *SCALES}
    short = {key: value for key, value in whole.items() if key not in optional}
    family = family_of("vl_bert", "--from")
    made = [
        family.config(read_official(official("vl_bert", NETWORK={"VLBERT": values}))).plain()
        for values in (whole, short)
    ]
    assert made[0] == made[1]


def test_rules_of_a_table() -> None:
    shapes = {"a.weight": (4, 3), "a.bias": (4,), "kv.weight": (6, 2), "q": (2, 2), "rest": (4, 2), "row": (5,)}
    table: Any = {
        "A": "a",
        ("K", "V"): "kv",
        "QKV": ("q", "rest"),
        "ROW": leading("row", 2),
        "ABSENT": "absent",
    }
    made = {rule.theirs: rule for rule in rules(table, shapes)}
    assert made.keys() == {("A.weight",), ("A.bias",), ("K.weight", "V.weight"), ("QKV",), ("ROW",)}
    assert made["K.weight", "V.weight"].their_shapes == ((3, 2), (3, 2))
    assert made["QKV",].their_shapes == ((6, 2),)
    assert made["ROW",].their_shapes == ((1, 1, 5),)
    tensors = {"K.weight": torch.ones(3, 2), "V.weight": torch.zeros(3, 2)}
    ours = made["K.weight", "V.weight"].to_ours(tensors)
    assert ours["kv.weight"][:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    again = made["K.weight", "V.weight"].to_theirs(ours)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_a_projection_of_squares_is_a_convolution() -> None:
    table: dict[Any, Shaped] = {"conv": squares("linear")}
    weight, bias = rules(table, {"linear.weight": (5, 3 * 4 * 4), "linear.bias": (5,)})
    assert (weight.their_shapes, bias.their_shapes) == (((5, 3, 4, 4),), ((5,),))
    assert isinstance(weight, Rule)
    pixels, kernel = torch.randn(1, 3, 4, 4), torch.randn(5, 3, 4, 4)
    flat = weight.to_ours({"conv.weight": kernel})["linear.weight"]
    torch.testing.assert_close(pixels.flatten(1) @ flat.T, torch.conv2d(pixels, kernel).flatten(1))


def test_the_command_line(official: Any, tmp_path: Path) -> None:
    config, file, out = official("vilbert"), tmp_path / "theirs.safetensors", tmp_path / "ours"
    tensors = published("vilbert", config)
    save_file(tensors, file)
    runner = CliRunner()
    there = ["convert", "--from", "vilbert", str(file), "--official-config", str(config), "--out", str(out)]
    done = runner.invoke(app, there)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "tensors of vilbert mapped" in said
    assert "heads: mlm, itm, mrc tied: cls.predictions.decoder.weight is" in said
    assert "c_layer.0.biOutput.q_dense1.weight: the authors' code makes it and never uses it" in said
    back_again = tmp_path / "back.safetensors"
    done = runner.invoke(app, ["convert", "--to", "vilbert", str(out), "--out", str(back_again)])
    assert done.exit_code == 0, done.output
    assert same(load_file(back_again), tensors)
