"""Runs over backbones: pre-trained text, photos beside regions, samples of their tokens; what they leave for Python."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests.e2e.conftest import Shapes, done, evaluation_of, steps_of, vlp
from vlp import VisionLanguageModel
from vlp.config import read_yaml
from vlp.data.index import open_index
from vlp.data.shards import ShardReader
from vlp.types import Sample

SHORT = ("run.steps=2", "batch.size=8", "precision=fp32", "log.tensorboard=false")
OBJECTIVES = "task.objectives={mlm: {kind: masked_language}, itm: {kind: matching}, mrfr: {kind: region_feature}}"


@pytest.fixture(scope="module")
def text_model(shapes: Shapes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights and the world's tokenizer, saved as transformers saves it."""
    from transformers import AutoTokenizer, BertConfig, BertForPreTraining

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(shapes.tokenizer)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    BertForPreTraining(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=70, **sizes)).save_pretrained(
        folder
    )
    return folder


def samples(data: Path) -> Iterator[Sample]:
    index = open_index(data)
    reader = ShardReader(index)
    for shard, entry in enumerate(index.manifest.shards):
        for row in range(entry.samples):
            yield reader.read(shard, row, image=True, regions=True, texts=True)


# ------------------------------------------------------------------------------------------------- pre-trained text


def test_a_run_starts_from_a_text_model_and_takes_its_tokenizer(
    shapes: Shapes, text_model: Path, tmp_path: Path
) -> None:
    model = read_yaml(Path(__file__).parents[2] / "configs/model/uniter_tiny.yaml")
    model["text"] |= {"layer": {"width": 32, "heads": 2, "ffn": 64}, "weights": {"source": text_model.name}}
    model["text"]["add_tokens"] = ["[IMG]"]
    (text_model.parent / "model.yaml").write_text(yaml.safe_dump(model))  # its paths are relative to it
    rate = "optimizer.learning_rate=1e-12"
    given = (f"model={text_model.parent / 'model.yaml'}", *shapes.overrides, *SHORT, rate, f"run.dir={tmp_path}")
    said = done(vlp("pretrain", "uniter_tiny", "tokenizer=null", *given))
    (note,) = [line for line in said.out.splitlines() if line.startswith("text starts from")]
    assert " 16 of layers that start no block" in note
    assert " 2 tells whether two sentences follow each other" in note
    ours, theirs = load_file(tmp_path / "model" / "model.safetensors"), load_file(text_model / "model.safetensors")
    words = theirs["bert.embeddings.word_embeddings.weight"]
    assert ours["text.parts.word.table.weight"].shape[0] == len(words) + 1, "[IMG] has a row"
    torch.testing.assert_close(ours["text.parts.word.table.weight"][: len(words)], words, atol=1e-6, rtol=0)
    up = "encoder.blocks.2.sublayers.ffn.weights.both.up.weight"
    torch.testing.assert_close(ours[up], theirs["bert.encoder.layer.2.intermediate.dense.weight"], atol=1e-6, rtol=0)
    head = "heads.mlm.transform.linear.weight"
    torch.testing.assert_close(ours[head], theirs["cls.predictions.transform.dense.weight"], atol=1e-6, rtol=0)
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "model")
    assert loaded.history is not None
    assert loaded.history.recipe["starts_from"]["text"]["source"] == text_model.name
    assert str(text_model) not in (tmp_path / "model" / "config.json").read_text(), "no path of the machine"
    assert loaded.encode(texts=["red [IMG] circle"]).tokens[0][2] == "[IMG]"


def test_words_of_another_tokenizer_are_refused(shapes: Shapes, text_model: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((shapes.tokenizer / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    (first, one), (second, two) = list(vocabulary.items())[20:22]
    vocabulary |= {first: two, second: one}
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    (other / "tokenizer_config.json").write_text((shapes.tokenizer / "tokenizer_config.json").read_text())
    given = (*shapes.overrides, *SHORT, f"run.dir={tmp_path / 'run'}", f"model.text.weights={{source: {text_model}}}")
    said = vlp("pretrain", "uniter_tiny", f"tokenizer={other}", *given)
    assert said.code == 2
    assert f"tokenizer: token {min(one, two)} is '" in said.err
    assert "leave tokenizer out" in said.err
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------- pixels beside regions


@pytest.fixture(scope="module")
def both(shapes: Shapes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over regions and a partly frozen backbone, some of whose tokens are drawn in pre-training."""
    run = tmp_path_factory.mktemp("runs") / "both"
    source = "{kind: pixels, backbone: resnet10t, size: 64, level: -2, train: 1, sample: 5}"
    grid = f"model.image.grid={{source: {source}, parts: [{{kind: feature}}, {{kind: box}}]}}"
    small = "model.text.layer={width: 32, heads: 2, ffn: 64}"
    words = f"tokenizer={shapes.tokenizer}"
    done(vlp("pretrain", "uniter_tiny", words, *shapes.overrides, *SHORT, OBJECTIVES, small, grid, f"run.dir={run}"))
    return run


def test_regions_and_a_grid_are_trained_together(both: Path, shapes: Shapes) -> None:
    assert np.isfinite([line["loss"] for line in steps_of(both)]).all()
    assert {"loss/mlm", "loss/itm", "loss/mrfr"} <= set(evaluation_of(both))
    source = read_yaml(both / "config.yaml")["model"]["image"]["grid"]["source"]
    assert source["mean"] == pytest.approx([0.485, 0.456, 0.406]), "auto is filled in"


def test_python_gives_what_extract_gives(both: Path, single: Path, shapes: Shapes, tmp_path: Path) -> None:
    for run in (both, single):
        out = tmp_path / run.name
        done(vlp("extract", "--model", run / "model", "--data", shapes.dev, "--out", out, "--what", "pooled,image"))
        rows = {row["id"]: row for part in out.glob("*.parquet") for row in pq.read_table(part).to_pylist()}
        model = VisionLanguageModel.from_pretrained(run / "model")
        for sample in list(samples(shapes.dev))[:3]:
            assert sample.image is not None
            image = [Image.open(io.BytesIO(sample.image))] if run is both else None
            found = model.encode(images=image, texts=[sample.captions[0]], regions=[sample.regions])
            row = next(row for name, row in rows.items() if name.endswith(f"/{sample.key}#0"))
            np.testing.assert_allclose(found.pooled[0], row["pooled"], atol=1e-5)
            np.testing.assert_allclose(found.image[0], np.array(row["image"]), atol=1e-5)
            regions = 0 if sample.regions is None else len(sample.regions)
            assert len(found.image[0]) == regions + 16 * (run is both), "extraction and Python take all 4 x 4 cells"


def test_the_card_says_what_the_model_is(both: Path, shapes: Shapes) -> None:
    card = (both / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vlp\n")
    assert "# both\n" in card
    assert "a grid of resnet10t over the whole picture" in card
    assert "| both | 3 | joint, ffn | joint, ffn |" in card
    recipe = yaml.safe_load(card.split("## Training")[1].split("```yaml\n")[1].split("```")[0])
    assert recipe["task"]["objectives"]["mlm"]["kind"] == "masked_language"
    assert recipe["data"]["train"][0]["path"] == "train"
    assert open_index(shapes.train).manifest.fingerprint in card
    for metric in evaluation_of(both):
        assert f"| {metric} |" in card
    assert str(shapes.train.parent) not in card, "no path of the machine"


# ------------------------------------------------------------------------------------------------- refused at start


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.image.source.width=99", r"model.image.source.width is 99, but the shards have "),
        ("model.image.source.classes=98", r"model.image.source.classes is 98, but the shards have "),
        ("model.text.vocab_size=97", r"model.text.vocab_size is 97, but the tokenizer has "),
    ],
)
def test_sizes_that_the_shards_contradict_are_refused_at_start(
    override: str, sentence: str, shapes: Shapes, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    said = vlp(
        "pretrain", "uniter_tiny", f"tokenizer={shapes.tokenizer}", *shapes.overrides, override, f"run.dir={run}"
    )
    assert said.code == 2
    assert sentence in said.err
    assert any(character.isdigit() for character in said.err.split(sentence)[1].split(";")[0]), "both numbers"
    assert not run.exists()


def test_a_trained_model_of_another_size_is_refused_with_the_first_tensors(
    single: Path, shapes: Shapes, tmp_path: Path
) -> None:
    given = (f"model={single / 'model'}", *shapes.overrides, "run.steps=2", "run.epochs=", f"run.dir={tmp_path}")
    said = vlp("finetune", "vqa", *given, "model.text.layer.ffn=96")
    assert said.code == 1
    assert "up.weight is [64, 32] and should be [96, 32]; " in said.err
    assert said.err.count("\n") == 1
