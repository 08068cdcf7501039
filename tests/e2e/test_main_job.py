"""The main job on a small world: pre-train, resume, fine-tune, evaluate, extract."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from tests.e2e.conftest import Shapes, done, evaluation_of, lines, steps_of, vlp, vlp_process
from vlp.config import read_yaml
from vlp.data.index import open_index
from vlp.data.shards import ShardReader
from vlp.data.text import TextEncoder

STEP_KEYS = {"step", "loss", "lr", "grad_norm", "examples_per_second", "tokens_per_second", "data_wait", "padding"}
OBJECTIVES = {"mlm", "itm", "mrfr", "mrc_kl"}
WIDTH = 32


# ----------------------------------------------------------------------------------------------------- pre-training


@pytest.mark.parametrize(("name", "steps"), [("single", 12), ("dual", 9)])
def test_what_a_run_leaves(name: str, steps: int, request: pytest.FixtureRequest) -> None:
    run: Path = request.getfixturevalue(name)
    resolved = read_yaml(run / "config.yaml")
    assert "auto" not in str(resolved)
    assert set(resolved["model"]["heads"]) == OBJECTIVES
    assert json.loads((run / "run.json").read_text())["ranks"] == 1
    files = {path.name for path in (run / "model").iterdir()}
    assert files >= {"model.safetensors", "config.json", "task.json", "tokenizer.json"}
    assert (run / "checkpoints" / f"step-{steps:08d}" / "state.json").is_file()
    assert not lines(run / "quarantine.jsonl")
    assert any((run / "tensorboard").iterdir()) if name == "dual" else not (run / "tensorboard").exists()
    found = steps_of(run)
    assert [line["step"] for line in found] == list(range(1, steps + 1))
    for line in found:
        assert set(line) >= STEP_KEYS
        assert all(math.isfinite(value) for value in line.values())
        losses = {key.removeprefix("loss/") for key in line if key.startswith("loss/")}
        assert losses == OBJECTIVES if name == "dual" else len(losses) == 1
        assert losses <= OBJECTIVES
        assert line["loss"] == pytest.approx(sum(line[f"loss/{objective}"] for objective in losses), rel=1e-5)
    assert 0 < found[-1]["lr"] < max(line["lr"] for line in found)


def test_evaluation_during_and_after_training(single: Path, dual: Path) -> None:
    judged = {f"loss/{name}" for name in OBJECTIVES} | {
        "mlm_accuracy",
        "itm_accuracy",
        "mrc_kl_accuracy",
        "mrfr_cosine",
    }
    assert set(evaluation_of(single)) == judged | {"word_accuracy", "word_accuracy_wrong_image"}
    assert set(evaluation_of(dual)) == judged
    assert [line["step"] for line in lines(dual / "metrics.jsonl") if "eval/loss/mlm" in line] == [5, 9]


def test_two_ranks_walk_the_same_curve(pretrain_single: tuple[str, ...], single: Path, tmp_path: Path) -> None:
    said = done(vlp_process(*pretrain_single, f"run.dir={tmp_path / 'two'}", "--nproc", 2))
    assert said.out.count("2 ranks, fp32") == 1
    one, two = steps_of(single), steps_of(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["ranks"] == 2
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in two], [line[name] for line in one], atol=2e-4)
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], abs=1e-5)
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], abs=1e-5)
    for metric, value in evaluation_of(tmp_path / "two").items():
        assert value == pytest.approx(evaluation_of(single)[metric], abs=0.02), metric


def test_a_resumed_run_walks_the_same_curve(shapes: Shapes, dual: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    shutil.copytree(dual, run)
    shutil.rmtree(run / "checkpoints" / "step-00000009")
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    shutil.rmtree(run / "model")
    # The resolved config is a config: it stands for the words that the run was started with.
    said = done(vlp("pretrain", run / "config.yaml", f"run.dir={run}", "--resume"))
    assert "from step 4" in said.out
    first, again = steps_of(dual), steps_of(run)
    assert [line["loss"] for line in again] == [line["loss"] for line in first]  # with dropout, in bf16
    assert [line["step"] for line in again] == list(range(1, 10))
    before, after = (load_file(path / "model" / "model.safetensors") for path in (dual, run))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert evaluation_of(run) == evaluation_of(dual)
    facts, earlier = (json.loads((path / "run.json").read_text()) for path in (run, dual))
    assert (facts["from_step"], earlier["from_step"], earlier["earlier_starts"]) == (4, 0, [])
    assert [start["time"] for start in facts["earlier_starts"]] == [earlier["time"]]
    assert facts["changed"] == {"run.dir": [str(dual), str(run)]}


def test_a_run_of_another_kind_is_not_resumed(dual: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    shutil.copytree(dual, run)
    said = vlp("pretrain", run / "config.yaml", f"run.dir={run}", "--resume", "run.seed=1")
    assert said.code == 1
    assert "run.seed" in said.err


def test_the_model_directory_is_whole(single: Path) -> None:
    from transformers import AutoTokenizer

    from vlp.models.model import Network
    from vlp.tasks.saved import load_trained

    model = Network.from_pretrained(single / "model")
    assert set(model.heads) == OBJECTIVES
    trained = load_trained(single / "model")
    assert trained.task.config.name == "pretrain"  # type: ignore[attr-defined]
    assert AutoTokenizer.from_pretrained(single / "model")("red").input_ids == [2, *_ids(single, "red"), 3]


def test_a_checkpoint_is_exported(single: Path, dual: Path, tmp_path: Path) -> None:
    for run in (single, dual):
        done(vlp("export", run, "--out", tmp_path / run.name))
        for file in sorted(path.name for path in (run / "model").iterdir() if path.suffix in (".safetensors", ".json")):
            if file != "training.json":  # tells the last evaluation, which a checkpoint does not know
                assert (tmp_path / run.name / file).read_bytes() == (run / "model" / file).read_bytes(), file
    earlier = tmp_path / "earlier"
    done(vlp("export", single, "--step", 6, "--out", earlier))
    before, after = (load_file(path / "model.safetensors") for path in (earlier, single / "model"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    refused = vlp("export", single, "--step", 7)
    assert (refused.code, "there are 6, 12" in refused.err) == (2, True), refused.err
    assert "evaluation.metric" in vlp("export", single, "--best").err
    assert "is not the directory of a run" in vlp("export", tmp_path).err


def _ids(run: Path, word: str) -> list[int]:
    return TextEncoder(run / "model", 16).encode(word)[0][1:-1].tolist()


# ------------------------------------------------------------------------------------------------------ fine-tuning


@pytest.fixture(scope="module")
def vqa(shapes: Shapes, dual: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vqa"
    length = ("run.steps=8", "run.epochs=", "batch.size=24", "precision=fp32", "log.tensorboard=false")
    done(vlp("finetune", "vqa", f"model={dual / 'model'}", *shapes.overrides, *length, f"run.dir={run}"))
    return run


@pytest.fixture(scope="module")
def retrieval(shapes: Shapes, single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "retrieval"
    length = ("run.steps=6", "run.epochs=", "batch.size=8", "precision=fp32", "log.tensorboard=false")
    given = (f"model={single / 'model'}", *shapes.overrides, *length, "task.judged_images=8")
    done(vlp("finetune", "retrieval", *given, f"run.dir={run}"))
    return run


def test_questions_are_learned(shapes: Shapes, vqa: Path) -> None:
    found = evaluation_of(vqa)
    assert set(found) == {"vqa_accuracy", "questions"}
    assert found["questions"] == sum(shard.questions for shard in open_index(shapes.dev).manifest.shards)
    assert 0 <= found["vqa_accuracy"] <= 1
    answers = read_yaml(vqa / "config.yaml")["task"]["answers"]
    assert {"red", "yes", "no", "left"} <= set(answers)
    assert steps_of(vqa)[-1]["loss/answer"] < steps_of(vqa)[0]["loss/answer"]


def test_questions_without_the_image(shapes: Shapes, dual: Path, tmp_path: Path) -> None:
    from vlp.tasks.saved import load_trained

    length = ("run.steps=2", "run.epochs=", "batch.size=8", "precision=fp32")
    given = (f"model={dual / 'model'}", *shapes.overrides, *length, "data.without=image")
    done(vlp("finetune", "vqa", *given, f"run.dir={tmp_path}"))
    assert not load_trained(tmp_path / "model").task.wants_regions  # it is judged as it was trained
    done(vlp("evaluate", "--model", tmp_path / "model", "--data", shapes.dev, "--out", tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text())["metrics"] == pytest.approx(evaluation_of(tmp_path), abs=1e-5)


def test_ranking_goes_on_from_the_matching_head(single: Path, retrieval: Path) -> None:
    found = evaluation_of(retrieval)
    recalls = {f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    ranks = {f"{way}_{kind}_rank" for way in ("image_to_text", "text_to_image") for kind in ("mean", "median")}
    assert set(found) == {"images", "texts"} | recalls | ranks
    assert found["images"] == 8
    before, after = (load_file(run / "model" / "model.safetensors") for run in (single, retrieval))
    head = before["heads.itm.output.weight"]
    assert 0 < float((after["heads.itm.output.weight"] - head).abs().max()) < 0.02  # a few small steps away
    assert read_yaml(retrieval / "config.yaml")["init"] == str(single / "model")


# -------------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("name", ["single", "vqa", "retrieval"])
def test_evaluation_alone_says_what_training_said(
    name: str, shapes: Shapes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run: Path = request.getfixturevalue(name)
    out = tmp_path / "deep" / "report.json"
    said = done(vlp("evaluate", "--model", run / "model", "--data", shapes.dev, "--out", out))
    report = json.loads(out.read_text())
    assert report["task"] == ("pretrain" if name == "single" else name)
    assert set(report["metrics"]) == set(evaluation_of(run))
    for metric, value in evaluation_of(run).items():
        assert report["metrics"][metric] == pytest.approx(value, abs=1e-5), metric
        assert metric in said.out


def test_a_pretrained_model_ranks_as_it_is(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    given = ("--model", single / "model", "--data", shapes.dev, "--out", out)
    done(vlp("evaluate", *given, "--task", "retrieval", "--limit", 5))
    metrics = json.loads(out.read_text())["metrics"]
    assert metrics["images"] == 5
    assert 0 <= metrics["text_to_image_recall@1"] <= metrics["text_to_image_recall@5"] <= 1


# -------------------------------------------------------------------------------------------------------- extraction

WHAT = ("pooled", "text", "image", "text.unimodal", "image.unimodal")


def features(folder: Path) -> dict[str, Any]:
    """The columns of all parts, in order."""
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return {name: [row for table in tables for row in table[name].to_pylist()] for name in tables[0].column_names}


@pytest.fixture(scope="module")
def extracted(shapes: Shapes, single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "one"
    given = ("--model", single / "model", "--data", shapes.dev, "--what", ",".join(WHAT), "--micro-tokens", 500)
    said = done(vlp("extract", *given, "--out", out))
    assert f"in {out}" in said.out
    return out


def test_a_row_per_caption_in_the_order_of_the_shards(shapes: Shapes, single: Path, extracted: Path) -> None:
    found = features(extracted)
    index = open_index(shapes.dev)
    reader, encoder = ShardReader(index), TextEncoder(single / "model", 64)
    row = 0
    for shard, entry in enumerate(index.manifest.shards):
        for place in range(entry.samples):
            sample = reader.read(shard, place, image=False, regions=True, texts=True)
            assert sample.regions is not None
            for number, caption in enumerate(sample.captions):
                assert found["id"][row] == f"{entry.name.removesuffix('.tar')}/{sample.key}#{number}"
                tokens = len(encoder.encode(caption)[0])
                assert np.shape(found["pooled"][row]) == (WIDTH,)
                assert np.shape(found["text"][row]) == np.shape(found["text.unimodal"][row]) == (tokens, WIDTH)
                image = (len(sample.regions), WIDTH)
                assert np.shape(found["image"][row]) == np.shape(found["image.unimodal"][row]) == image
                row += 1
    assert row == len(found["id"]) == len(set(found["id"]))
    manifest = json.loads((extracted / "manifest.json").read_text())
    assert manifest["rows"] == row
    assert manifest["what"] == list(WHAT)
    assert manifest["widths"] == dict.fromkeys(WHAT, WIDTH)
    assert manifest["data"] == index.manifest.fingerprint
    assert manifest["quarantined"] == 0
    assert not [path for path in extracted.iterdir() if path.name.startswith(".")]


def flat(rows: list[Any]) -> NDArray[np.float32]:
    return np.concatenate([np.asarray(row, np.float32).ravel() for row in rows])


def test_features_are_what_the_model_makes(shapes: Shapes, single: Path, extracted: Path) -> None:
    from vlp.data.batch import collate
    from vlp.data.image import RegionImages
    from vlp.models.model import Network
    from vlp.types import Example

    sample = ShardReader(open_index(shapes.dev)).read(0, 0, image=False, regions=True, texts=True)
    assert sample.regions is not None
    tokens, special, word = TextEncoder(single / "model", 64).encode(sample.captions[0])
    images = RegionImages(sample.regions.features_RD.shape[1], 100)
    batch = collate([Example("x", tokens, special, word, images.prepare(sample))], images.form, {})
    with torch.inference_mode():
        encoded = Network.from_pretrained(single / "model")(batch)
    found = features(extracted)
    np.testing.assert_allclose(found["pooled"][0], encoded.pooled_BH[0], atol=1e-5)
    np.testing.assert_allclose(found["text"][0], encoded.text_NH, atol=1e-5)
    np.testing.assert_allclose(found["image.unimodal"][0], encoded.taps["image.unimodal"], atol=1e-5)


def test_two_ranks_extract_the_same(shapes: Shapes, single: Path, extracted: Path, tmp_path: Path) -> None:
    given = ("--model", single / "model", "--data", shapes.dev, "--what", ",".join(WHAT), "--nproc", 2)
    done(vlp_process("extract", *given, "--out", tmp_path / "two"))
    names = [sorted(path.name for path in folder.iterdir()) for folder in (extracted, tmp_path / "two")]
    assert names[0] == names[1]
    one, two = features(extracted), features(tmp_path / "two")
    assert one["id"] == two["id"]
    for name in WHAT:
        np.testing.assert_allclose(flat(two[name]), flat(one[name]), atol=1e-5, err_msg=name)
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["rows"] == len(one["id"])


def test_half_precision_is_close(shapes: Shapes, single: Path, extracted: Path, tmp_path: Path) -> None:
    given = ("--model", single / "model", "--data", shapes.dev, "--precision", "bf16")
    done(vlp("extract", *given, "--out", tmp_path / "half"))
    half, whole = features(tmp_path / "half"), features(extracted)
    assert list(half) == ["id", "key", "image.name", "words", "pooled"]
    difference = np.abs(flat(half["pooled"]) - flat(whole["pooled"])).max()
    assert 0 < difference < 0.05
