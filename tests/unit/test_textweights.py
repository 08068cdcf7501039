"""Initial weights of a text model: which layer starts which block, what is new, what is refused, and that all of it is
accounted for."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.unit.text_models import DEPTH, PLACES, PRETRAINED, WORDS, config_of, model_of, saved
from vlp.errors import CheckpointError, ConfigError, VlpError
from vlp.models.model import Network
from vlp.models.start import start
from vlp.models.text import TextWeightsConfig
from vlp.models.textsource import read_text_model
from vlp.models.textweights import Accounting, start_text

BOTH = {"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}
CROSS = {"stream": "both", "sublayers": ["cross", "self", "ffn"], "share": ["cross"]}


def account(model: Network, folder: Path, **wanted: Any) -> Accounting:
    return start_text(model, read_text_model(str(folder)), TextWeightsConfig(source=str(folder), **wanted))


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def up(model: Network, block: int, stream: str = "text") -> Tensor:
    """A weight of a block by which a layer is known."""
    return model.get_parameter(f"encoder.blocks.{block}.sublayers.ffn.weights.{stream}.up.weight")


def refused(model: Network, folder: Path, sentence: str, **wanted: Any) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(VlpError, match=sentence) as raised:
        account(model, folder, **wanted)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "half of it is loaded"


@pytest.mark.parametrize(
    ("kind", "head"), [("bert", "ForPreTraining"), *((kind, "ForMaskedLM") for kind in PRETRAINED), ("albert", "Model")]
)
def test_every_tensor_is_loaded_or_has_a_reason(kind: str, head: str, tmp_path: Path) -> None:
    saved(tmp_path, kind, head)
    found = account(model_of(kind), tmp_path)
    given = {name.removeprefix(f"{kind}.") for name in tensors(tmp_path)}
    used = {name for names in found.loaded.values() for name in names}
    assert used | set(found.unused) == given
    assert not used & set(found.unused)
    text = {name for name, _ in model_of(kind).named_parameters() if name.startswith(("text.", "encoder."))}
    assert text <= set(found.loaded)
    heads = {name for name in found.unused if not name.startswith(("cls.seq", "sop_classifier", "pooler"))}
    assert heads <= {"cls.predictions.decoder.bias", "lm_head.decoder.bias", "predictions.decoder.bias"}


def test_a_sentence_for_the_log(tmp_path: Path) -> None:
    saved(tmp_path, "bert", "ForPreTraining")
    model = model_of("bert", weights={"source": str(tmp_path)})
    (said,) = start(model, None)
    assert said.startswith(f"text starts from {tmp_path}: ")
    assert "tensors loaded" in said
    assert "2 tells whether two sentences follow each other" in said


# ------------------------------------------------------------------------------------------------------ which layer


def test_layers_are_chosen_by_the_config(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    blocks = [{"stream": "text", "repeat": 2, "sublayers": ["self", "ffn"]}, BOTH, CROSS]
    model = model_of("bert", blocks)
    fresh = up(model, 1).clone()
    found = account(model, tmp_path, layers=[2, None, 0, 1])
    theirs = [tensors(tmp_path)[f"encoder.layer.{layer}.intermediate.dense.weight"] for layer in range(DEPTH)]
    assert torch.equal(up(model, 0), theirs[2])
    assert torch.equal(up(model, 1), fresh)
    assert torch.equal(up(model, 2, "both"), theirs[0])
    assert torch.equal(up(model, 3), theirs[1])
    assert "encoder.blocks.1" in found.new
    assert not any(".cross." in name or ".image." in name for name in found.loaded)


def test_by_default_the_first_block_takes_the_first_layer(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    image = {"stream": "image", "sublayers": ["self", "ffn"]}
    tower = {"stream": "text", "repeat": DEPTH + 1, "sublayers": ["self", "ffn"]}
    model = model_of("bert", [image, tower])
    found = account(model, tmp_path)
    for layer in range(DEPTH):
        wanted = tensors(tmp_path)[f"encoder.layer.{layer}.intermediate.dense.weight"]
        assert torch.equal(up(model, 1 + layer), wanted)
    assert found.new == [f"encoder.blocks.{DEPTH + 1}", "heads.mlm"]


def test_layers_that_start_no_block_are_accounted_for(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    found = account(model_of("bert", [{"stream": "text", "sublayers": ["self"]}, BOTH]), tmp_path, layers=[1])
    reasons = {name.split(".")[2]: reason for name, reason in found.unused.items() if name.startswith("encoder.layer.")}
    assert reasons["0"] == reasons["2"] == "of layers that start no block"
    assert reasons["1"] == "of feed-forward networks that the block does not have"


# ------------------------------------------------------------------------------------------------------- its tables


def test_fewer_positions_are_the_first_of_them(tmp_path: Path) -> None:
    for kind, first in (("bert", 0), ("roberta", 2)):
        saved(tmp_path / kind, kind)
        model = model_of(kind, max_length=7)
        account(model, tmp_path / kind)
        theirs = tensors(tmp_path / kind)["embeddings.position_embeddings.weight"]
        assert torch.equal(model.get_parameter("text.parts.position.table.weight"), theirs[first : first + 7])


def test_rows_before_the_first_token_s_are_kept_where_both_have_them(tmp_path: Path) -> None:
    saved(tmp_path, "roberta")
    parts = [{"kind": "word"}, {"kind": "position", "first": 2}, {"kind": "segment", "rows": 1}]
    model = model_of("roberta", parts=parts)
    account(model, tmp_path)
    theirs = tensors(tmp_path)["embeddings.position_embeddings.weight"]
    assert torch.equal(model.get_parameter("text.parts.position.table.weight"), theirs)


def test_more_positions_start_as_the_config_says(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    theirs = tensors(tmp_path)["embeddings.position_embeddings.weight"]
    refused(
        model_of("bert", max_length=30), tmp_path, r"20 positions, and model.text.max_length is 30 .*more_positions"
    )
    made = {}
    for how in ("new", "repeat", "interpolate"):
        model = model_of("bert", max_length=2 * PLACES - 1)
        own = model.get_parameter("text.parts.position.table.weight").detach().clone()
        account(model, tmp_path, more_positions=how)
        made[how] = model.get_parameter("text.parts.position.table.weight").detach()
    assert torch.equal(made["new"], torch.cat([theirs, own[PLACES:]]))
    assert torch.equal(made["repeat"], torch.cat([theirs, theirs[:-1]]))
    torch.testing.assert_close(made["interpolate"][::2], theirs)
    torch.testing.assert_close(made["interpolate"][1::2], (theirs[1:] + theirs[:-1]) / 2)


def test_words_that_only_we_have_start_new_and_those_we_lack_are_left(tmp_path: Path) -> None:
    saved(tmp_path, "bert", "ForPreTraining")
    theirs = tensors(tmp_path)["bert.embeddings.word_embeddings.weight"]
    for words in (WORDS + 2, WORDS - 3):
        model = model_of("bert", vocab_size=words)
        own = model.text.words.weight.detach().clone()
        account(model, tmp_path)
        rows = min(words, WORDS)
        assert torch.equal(model.text.words.weight[:rows], theirs[:rows])
        assert torch.equal(model.text.words.weight[rows:], own[rows:])
        assert len(model.heads["mlm"].bias) == words


def test_segments_beyond_theirs_start_as_their_last(tmp_path: Path) -> None:
    saved(tmp_path, "roberta")
    parts = [{"kind": "word"}, {"kind": "position"}, {"kind": "segment", "rows": 2}]
    model = model_of("roberta", parts=parts)
    account(model, tmp_path)
    row = tensors(tmp_path)["embeddings.token_type_embeddings.weight"]
    assert torch.equal(model.get_parameter("text.parts.segment.table.weight"), torch.cat([row, row]))


def test_a_part_that_they_lack_starts_new_only_if_the_config_says_so(tmp_path: Path) -> None:
    saved(tmp_path, "distilbert")
    parts = [{"kind": "word"}, {"kind": "position"}, {"kind": "segment"}]
    refused(model_of("distilbert", parts=parts), tmp_path, r"it has no segment table \(.*weights.new: \[segment\]\)")
    found = account(model_of("distilbert", parts=parts), tmp_path, new=["segment"])
    assert "text.parts.segment.table" in found.new


def test_image_tables_that_start_as_the_text_s_are_copied_from_the_pre_trained_ones(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    values = config_of("bert", weights={"source": str(tmp_path)}).plain()
    values["image"]["parts"].append({"kind": "segment", "index": 1, "start": "text"})
    model = Network(type(config_of("bert")).parse(values))
    start(model, None)
    image = model.get_parameter("image.parts.segment.table.weight")
    assert torch.equal(image, tensors(tmp_path)["embeddings.token_type_embeddings.weight"])


# ---------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ({"layer": {"heads": 2}}, r"heads of encoder.blocks.0 is 2, and theirs is 4"),
        ({"layer": {"eps": 1e-5}}, r"eps is 1e-05, and theirs is 1e-12"),
        ({"layer": {"activation": "relu"}}, r"activation of encoder.blocks.0 is relu, and theirs is gelu"),
        ({"layer": {"norm": "pre"}}, r"norm of encoder.blocks.0 is pre, and theirs is post"),
        ({"layer": {"ffn": 32}}, r"intermediate.dense.weight gives \[24, 16\], and our .*up.weight is \[32, 16\]"),
        ({"layer": {"width": 32}}, r"word_embeddings.weight gives \[50, 16\].* \[50, 32\].*; and \d+ more"),
        ({"width": 8}, r"word_embeddings.weight gives \[50, 16\], and our text.parts.word.table.weight is \[50, 8\]"),
    ],
)
def test_layers_of_another_shape_or_habit_are_refused(text: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    refused(model_of("bert", **text), tmp_path, sentence)


def test_layers_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    refused(model_of("bert"), tmp_path, r"has 3 layers, counted from 0, so no layer 3", layers=[0, 3])
    sentence = r"layers names 4 layers, but text looks at text in 3 blocks only"
    refused(model_of("bert"), tmp_path, sentence, layers=[0, 1, 2, 2])


def spoil(folder: Path, how: str) -> None:
    given, file = tensors(folder), folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    name = "encoder.layer.1.output.dense.bias"
    if how == "missing":
        del given[name]
    elif how == "surplus":
        given["encoder.layer.1.crossattention.self.query.bias"] = torch.zeros(16)
    elif how == "unknown":
        config["model_type"] = "gpt2"
    elif how == "relative":
        config["position_embedding_type"] = "relative_key"
    (folder / "config.json").write_text(json.dumps(config))
    save_file(given, file)
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing", r"encoder.layer.1.output.dense.bias is missing, which should start our encoder.blocks.1"),
        ("surplus", r"encoder.layer.1.crossattention.self.query.bias has no place in our layers"),
        ("unknown", r"is a 'gpt2', which is not known"),
        ("relative", r"positions of encoder.blocks.0 is absolute, and theirs is relative_key"),
        ("no config", r"config.json: not the config of a text model"),
        ("no weights", r"holds neither model.safetensors nor pytorch_model.bin"),
        ("cut", r"model.safetensors: cannot be read"),
    ],
)
def test_wrong_files_are_refused(how: str, sentence: str, tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    spoil(tmp_path, how)
    refused(model_of("bert"), tmp_path, sentence)


def test_a_directory_that_is_not_there_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"\./nowhere: no such directory"):
        read_text_model("./nowhere")
    with pytest.raises(CheckpointError, match=r"bert-base-uncased: no such directory, and not to be had from the hub"):
        read_text_model("bert-base-uncased")


# -------------------------------------------------------------------------------------------------- how it was saved


def test_names_of_2018_and_pickles_of_plain_tensors_are_read(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors(tmp_path).items()}
    old = {f"bert.{name.replace('LayerNorm.bias', 'LayerNorm.beta')}": tensor for name, tensor in old.items()}
    modern, aged = model_of("bert"), model_of("bert")
    account(modern, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(old, tmp_path / "pytorch_model.bin")
    account(aged, tmp_path)
    assert all(torch.equal(tensor, aged.state_dict()[name]) for name, tensor in modern.state_dict().items())


def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    whole = model_of("bert")
    account(whole, tmp_path)
    given = tensors(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(given)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: given[name] for name in inside}, tmp_path / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    split = model_of("bert")
    account(split, tmp_path)
    assert all(torch.equal(tensor, split.state_dict()[name]) for name, tensor in whole.state_dict().items())
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(model_of("bert"), tmp_path, r"index.json: not the index of a model's weights")


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_with_code_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": torch.zeros(3), "more": _Bomb()}, tmp_path / "pytorch_model.bin")
    refused(model_of("bert"), tmp_path, r"refused, since it may hold code: .* \(it asks for [\w.]+\); convert")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(), protocol=2))
    refused(model_of("bert"), tmp_path, r"pytorch_model.bin: (refused|cannot be read)")
    assert not (tmp_path / "exploded").exists()


# --------------------------------------------------------------------------------------------- layers that differ


NEW = ["position", "segment"]


def modern_bert(folder: Path) -> None:
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertConfig(
        vocab_size=WORDS, hidden_size=16, num_attention_heads=4, num_hidden_layers=2, intermediate_size=24, **special
    )
    ModernBertForMaskedLM(config).save_pretrained(folder)


def test_layers_that_cannot_be_ours_are_refused_and_the_words_can_be_had(tmp_path: Path) -> None:
    modern_bert(tmp_path)
    text = {"layer": {"eps": 1e-5}}
    refused(model_of("bert", **text), tmp_path, r"differ from ours: rotary positions, .*weights.layers: \[\]")
    model = model_of("bert", **text)
    found = account(model, tmp_path, layers=[], new=["position", "segment"])
    assert torch.equal(model.text.words.weight, tensors(tmp_path)["model.embeddings.tok_embeddings.weight"])
    assert set(found.loaded) == {"text.parts.word.table.weight", "text.combine.norm.weight"}
    with pytest.raises(ConfigError, match="layers"):
        account(model, tmp_path)


def test_attention_and_norms_of_named_layers_start_ours_where_the_rest_differs(tmp_path: Path) -> None:
    modern_bert(tmp_path)
    text = {"layer": {"eps": 1e-5, "norm": "pre"}}
    model, untouched = model_of("bert", **text), model_of("bert", **text)
    found = account(model, tmp_path, layers=[1, 0], new=["position", "segment"])
    theirs, ours = tensors(tmp_path), model.state_dict()
    for number, layer in enumerate((1, 0)):
        start, own = f"model.layers.{layer}", f"encoder.blocks.{number}.sublayers"
        attention = f"{own}.self.weights.text.attention"
        joined = torch.cat([ours[f"{attention}.query.weight"], ours[f"{attention}.key_value.weight"]])
        assert torch.equal(joined, theirs[f"{start}.attn.Wqkv.weight"])
        assert torch.equal(ours[f"{attention}.output.weight"], theirs[f"{start}.attn.Wo.weight"])
        assert torch.equal(ours[f"{own}.ffn.weights.text.norm.weight"], theirs[f"{start}.mlp_norm.weight"])
        assert {f"{own}.ffn.weights.text.{each}" for each in ("up", "down")} <= set(found.new)
        assert torch.equal(
            ours[f"{own}.ffn.weights.text.up.weight"], untouched.state_dict()[f"{own}.ffn.weights.text.up.weight"]
        )
    assert "encoder.blocks.1.sublayers.self.weights.text.norm" in found.new, "its first layer has no such norm"
    assert found.unused["layers.0.mlp.Wi.weight"] == "of gated feed-forward networks"
    refused(model_of("bert", layer={"eps": 1e-5}), tmp_path, "norm of encoder.blocks.0 is post", layers=[0], new=NEW)
    narrow = model_of("bert", layer={"eps": 1e-5, "norm": "pre", "heads": 2})
    refused(narrow, tmp_path, "heads of encoder.blocks.0 is 2, and theirs is 4", layers=[0], new=NEW)


@pytest.mark.parametrize(
    ("name", "left", "sentence"),
    [
        ("attn.Wo.weight", None, r"layers\.1\.attn\.Wo\.weight is missing"),
        ("attn_norm.weight", None, r"layers\.1\.attn_norm\.weight is missing"),
        ("attn.Wqkv.weight", None, r"layers\.1\.attn\.Wq\.weight is missing"),
        ("attn.Wqkv.weight", 2, r"layers\.1\.attn\.Wq\.weight gives \[1, 16\]"),
    ],
)
def test_what_named_layers_lack_is_refused(name: str, left: int | None, sentence: str, tmp_path: Path) -> None:
    modern_bert(tmp_path)
    given = tensors(tmp_path)
    whole = given.pop(f"model.layers.1.{name}")
    if left is not None:
        given[f"model.layers.1.{name}"] = whole[:left].clone()
    save_file(given, tmp_path / "model.safetensors")
    refused(model_of("bert", layer={"eps": 1e-5, "norm": "pre"}), tmp_path, sentence, layers=[0, 1], new=NEW)
