"""Published checkpoints into models and back: every tensor accounted for, everything that does not fit refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from tests.examples import shipped
from vlp import resources
from vlp.cli import app
from vlp.convert import convert
from vlp.errors import CheckpointError, ConfigError
from vlp.models.convert.account import plan_of
from vlp.models.convert.family import read_official
from vlp.models.convert.names import Rule, Shaped, leading, rules, squares
from vlp.models.convert.registry import FAMILIES, family_of
from vlp.models.model import Network, read_config

BERT = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}
HF_LXMERT = {
    "num_object_labels": 9,
    "num_attr_labels": 5,
    "num_qa_labels": 7,
    "visual_feat_dim": 6,
    "visual_pos_dim": 4,
}
DEPTHS = {"l_layers": 2, "r_layers": 1, "x_layers": 1}
VILBERT = {
    "v_feature_size": 6,
    "v_target_size": 5,
    "v_hidden_size": 12,
    "v_num_hidden_layers": 2,
    "v_num_attention_heads": 2,
    "v_intermediate_size": 10,
    "v_hidden_act": "relu",
    "v_hidden_dropout_prob": 0.2,
    "v_attention_probs_dropout_prob": 0.1,
    "bi_hidden_size": 8,
    "bi_num_attention_heads": 4,
    "v_biattention_id": [0, 1],
    "t_biattention_id": [1, 2],
}
VL_BERT = {"visual_size": 16, "type_vocab_size": 3, "with_pooler": True, "visual_region_classes": 5}
SCALES = {"visual_scale_text_init": 0.0, "visual_scale_object_init": 0.0}
OFFICIAL: dict[str, dict[str, Any]] = {
    "uniter": {"official_config": BERT, "img_dim": 6, "img_label_dim": 5},
    "lxmert": {
        "official_config": BERT,
        "visual_config": {**DEPTHS, "visual_feat_dim": 6, "visual_pos_dim": 4, "obj_id_num": 9, "attr_id_num": 5},
        "num_answers": 7,
    },
    "hf-lxmert": {**BERT, **DEPTHS, **HF_LXMERT},
    "vilbert": {**BERT, **VILBERT},
    "visualbert": {"official_config": BERT, "objective_args": {"visual_embedding_dim": 6}},
    "hf-visualbert": {**BERT, "visual_embedding_dim": 6},
    "vl_bert": {"NETWORK": {"VLBERT": {**BERT, **VL_BERT, **SCALES}}},
    "vilt": {**BERT, "image_size": 8, "patch_size": 4},
    "hf-vilt": {**BERT, "image_size": 8, "patch_size": 4},
}
SECOND_NAMES = {
    "uniter": ["cls.predictions.decoder.weight", "feat_regress.weight"],
    "lxmert": ["cls.predictions.decoder.weight"],
    "hf-lxmert": ["cls.predictions.decoder.weight"],
    "vilbert": ["cls.predictions.decoder.weight"],
    "visualbert": ["cls.predictions.decoder.weight"],
    "hf-visualbert": ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"],
    "vl_bert": ["vlbert.mlm_head.predictions.decoder.weight"],
    "vilt": [],
    "hf-vilt": ["mlm_score.decoder.weight", "mlm_score.bias"],
}


@pytest.fixture
def official(tmp_path: Path) -> Any:
    """Writes a kind's small config as the authors would."""

    def write(kind: str, **changes: Any) -> Path:
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps({**OFFICIAL[kind], **changes}))
        return path

    return write


def published(kind: str, config: Path) -> dict[str, Tensor]:
    """A random checkpoint of a kind, with all heads that go together, second names and tensors that are never used."""
    family = family_of(kind, "--from")
    given = read_official(config)
    ours = family.config(given)
    heads = {name: head.config for name, head in family.heads(ours).items() if name not in ("mrfr", "images", "rank")}
    counts = {"mrc": 5, "obj": 9, "attr": 5, "qa": 7}
    for name, head in heads.items():
        if name in counts and head.kind == "classes":
            heads[name] = head.model_copy(update={"classes": counts[name]})
    if "attr" in heads:
        heads["attr"] = heads["attr"].model_copy(update={"inner_of": "obj"})
        heads["feat"] = heads["feat"].model_copy(update={"inner_of": "obj", "width": 6})
    if kind == "uniter":
        heads["mrfr"] = family.heads(ours)["mrfr"].config.model_copy(update={"width": 6})
    if kind == "vilt":
        heads["mlm"] = heads["mlm"].model_copy(update={"tied": False})
    ours = ours.model_copy(update={"heads": heads})
    made = plan_of(family, ours, kind)
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in made.their_shapes().items()}
    unused = {name: torch.randn(each.shape, generator=draw) for name, each in family.unused(ours).items()}
    return tensors | unused | {name: tensors[family.tied[name]].clone() for name in SECOND_NAMES[kind]}


def there(kind: str, file: Path, config: Path, out: Path) -> None:
    convert(file, source=kind, target=None, config=None, official=config, out=out)


def back(kind: str, directory: Path, file: Path) -> dict[str, Tensor]:
    convert(directory, source=None, target=kind, config=None, official=None, out=file)
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in wanted.items()
    )


def record(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "conversion.json").read_text())
    return found


# -------------------------------------------------------------------------------------------------- the way and back


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


# ---------------------------------------------------------------------------------------------------------- refused

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


# ------------------------------------------------------------------------------------------------------------ tables


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
