"""Fine-tuning and evaluation from the command line: tasks, readouts, ways of transfer, and what evaluation writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.e2e.conftest import Shapes, done, evaluation_of, steps_of, vlp, vlp_data, vlp_process
from tests.unit.pictures import encoded
from vlp.config import read_yaml
from vlp.data.index import open_index

SHORT = ("run.epochs=", "batch.size=16", "precision=fp32", "log.tensorboard=false", "evaluation.limit=40")


def finetuned(name: str, model: Path, shapes: Shapes, run: Path, *more: str, steps: int = 3) -> Path:
    given = (f"model={model / 'model'}", *shapes.overrides, *SHORT, f"run.steps={steps}")
    done(vlp("finetune", name, *given, *more, f"run.dir={run}"))
    return run


@pytest.fixture(scope="module")
def vqa(shapes: Shapes, single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetuned("vqa", single, shapes, tmp_path_factory.mktemp("runs") / "vqa", steps=6)


def report_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# ------------------------------------------------------------------------------------------------------------ report


def test_what_an_evaluation_writes(shapes: Shapes, vqa: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / "deep" / f"report.{name}" for name in ("json", "results", "html")}
    given = ("evaluate", "--model", vqa / "model", "--data", shapes.dev, "--limit", 60)
    writing = ("--out", files["json"], "--results", files["results"], "--html", files["html"], "--failures", 7)
    said = done(vlp(*given, *writing))
    report = report_of(files["json"])
    assert report["metrics"]["questions"] == 60
    low, high = report["intervals"]["vqa_accuracy"]
    assert 0 <= low <= report["metrics"]["vqa_accuracy"] <= high <= 1
    assert "95 % interval" in said.out
    results = json.loads(files["results"].read_text())
    assert len(results) == 60
    assert all(set(result) == {"question_id", "answer"} for result in results)
    page = files["html"].read_text()
    assert page.count("<article>") == 7
    assert page.count("data:image/jpeg;base64,") == 7
    assert "7 failures" in said.out


def test_several_ranks_say_the_same(shapes: Shapes, vqa: Path, tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        out, results = tmp_path / f"{ranks}.json", tmp_path / f"{ranks}.results"
        files = ("--out", out, "--results", results)
        done(vlp_process("evaluate", "--model", vqa / "model", "--data", shapes.dev, *files, "--nproc", ranks))
        found.append((report_of(out), json.loads(results.read_text())))
    assert found[0] == found[1]
    assert found[0][0]["metrics"]["questions"] == sum(s.questions for s in open_index(shapes.dev).manifest.shards)


def test_without_a_modality(shapes: Shapes, vqa: Path, tmp_path: Path) -> None:
    given = ("evaluate", "--model", vqa / "model", "--data", shapes.dev, "--limit", 40, "--out", tmp_path / "r.json")
    found = {}
    for without in ("image", "text"):
        said = done(vlp(*given, "--without", without))
        assert f"without {without}" in said.out
        report = report_of(tmp_path / "r.json")
        assert report["without"] == without
        found[without] = report["metrics"]["questions"]
    assert found == {"image": 40, "text": 40}


def test_a_split_without_answers(shapes: Shapes, vqa: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(encoded(Image.new("RGB", (32, 32))))
    with (tmp_path / "secret.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "question", "id"], ["a.jpg", "what is red", "12"]])
    given = ("--file", tmp_path / "secret.csv", "--images", tmp_path / "photos", "--question", "question")
    done(vlp_data("csv", *given, "--question-id", "id", "--out", tmp_path / "shards"))
    results, out = tmp_path / "results.json", tmp_path / "r.json"
    given = ("--data", tmp_path / "shards", "--without", "image", "--results", results, "--out", out)
    said = done(vlp("evaluate", "--model", vqa / "model", *given))
    assert report_of(out)["metrics"] == {}
    assert "note: the questions have no answers, so there is no score" in said.out
    (answer,) = json.loads(results.read_text())
    assert answer["question_id"] == 12


def test_asked_for_wrongly(shapes: Shapes, vqa: Path, single: Path, tmp_path: Path) -> None:
    data = ("--data", shapes.dev)
    for model, more, sentence in (
        (vqa, ("--without", "words"), "--without: 'words' is not right, it should be image or text"),
        (vqa, ("--task", "pretrain"), "was trained for 'vqa' and has no heads for pretrain"),
        (vqa, ("--task", "retrieval"), "was trained for 'vqa' and has no matching head"),
        (vqa, ("--folds", 2), "--folds: 'vqa' ranks nothing"),
        (single, ("--results", tmp_path / "x"), "--results: 'pretrain' gives no answers"),
        (single, ("--html", tmp_path / "x"), "--html: 'pretrain' measures losses"),
    ):
        said = vlp("evaluate", "--model", model / "model", *data, *more)
        assert (said.code, said.err.count("\n")) == (2, 1), said.err
        assert sentence in said.err


# ---------------------------------------------------------------------------------------------------------- readouts


@pytest.mark.parametrize("pooler", ["{fusion: product}", "{at: mask}"])
def test_readouts(pooler: str, shapes: Shapes, single: Path, tmp_path: Path) -> None:
    run = finetuned("vqa", single, shapes, tmp_path / "run", f"model.pooler={pooler}")
    out = tmp_path / "r.json"
    done(vlp("evaluate", "--model", run / "model", "--data", shapes.dev, "--limit", 40, "--out", out))
    assert report_of(out)["metrics"] == pytest.approx(evaluation_of(run), abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- transfer


def moved(run: Path, before: Path) -> set[str]:
    """First words of the names of the weights that a run has changed."""
    old, new = (load_file(path / "model" / "model.safetensors") for path in (before, run))
    return {name.split(".")[0] for name in old if name in new and not torch.equal(old[name], new[name])}


def test_a_frozen_trunk_stays(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    run = finetuned("vqa", single, shapes, tmp_path / "run", "transfer.freeze=trunk")
    assert moved(run, single) == {"pooler"}


def test_adapters_are_merged_where_they_were_asked_for(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    run = finetuned("vqa", single, shapes, tmp_path / "run", "transfer.adapters={rank: 2}", "checkpoint.every=2")
    assert moved(run, single) == {"encoder", "pooler"}
    out = tmp_path / "r.json"
    done(vlp("evaluate", "--model", run / "model", "--data", shapes.dev, "--limit", 40, "--out", out))
    assert report_of(out)["metrics"] == pytest.approx(evaluation_of(run), abs=1e-6)
    done(vlp("export", run, "--out", tmp_path / "exported"))
    exported, saved = (load_file(path / "model.safetensors") for path in (tmp_path / "exported", run / "model"))
    assert exported.keys() == saved.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(exported[name], tensor)


def test_penalties_are_part_of_the_loss(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    run = finetuned("vqa", single, shapes, tmp_path / "run", "penalty={l1: 1.0e-4, l2: 0.01}", "deepspeed=zero2")
    penalties = [line["penalty"] for line in steps_of(run)]
    assert penalties[0] == 0  # nothing has moved yet
    assert penalties[-1] > 0
    said = vlp("finetune", "vqa", f"model={single / 'model'}", *shapes.overrides, "penalty={l2: 1}", "deepspeed=zero3",
               f"run.dir={tmp_path / 'other'}")  # fmt: skip
    assert said.code == 2
    assert "penalty: ZeRO stage 3 keeps no whole weight to penalise" in said.err


def test_layers_that_begin_later(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    more = ("optimizer.unfreeze_every=1", "optimizer.layer_decay=0.8")
    run = finetuned("vqa", single, shapes, tmp_path / "run", *more, steps=2)
    # Of three blocks only the last has begun at step 2.
    old, new = (load_file(path / "model" / "model.safetensors") for path in (single, run))
    changed = {name for name in old if name in new and not torch.equal(old[name], new[name])}
    assert {name.split(".")[2] for name in changed if name.startswith("encoder.blocks.")} == {"2"}
    assert not any(name.startswith(("text.", "image.")) for name in changed)


def test_two_stages(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    """Pre-training goes on with the task's data, then fine-tuning starts from that."""
    given = (*shapes.overrides, "run.steps=2", "batch.size=16", "precision=fp32", "log.tensorboard=false", "tokenizer=")
    done(vlp("pretrain", "uniter_tiny", f"model={single / 'model'}", *given, f"run.dir={tmp_path / 'more'}"))
    run = finetuned("vqa", tmp_path / "more", shapes, tmp_path / "run")
    assert read_yaml(run / "config.yaml")["init"] == str(tmp_path / "more" / "model")


@pytest.mark.parametrize("same", [True, False])
def test_an_answer_head_goes_on_with_its_own_answers_only(
    same: bool, shapes: Shapes, vqa: Path, tmp_path: Path
) -> None:
    """Answers in another order are of the same size and would be learned from wrong ones."""
    answers = read_yaml(vqa / "config.yaml")["task"]["answers"]
    order = answers if same else answers[::-1]
    given = (f"model={vqa / 'model'}", *shapes.overrides, *SHORT, "run.steps=1", "optimizer.learning_rate=1.0e-9")
    run = tmp_path / "run"
    said = done(vlp("finetune", "vqa", *given, f"task.answers={json.dumps(order)}", f"run.dir={run}"))
    assert ("new: heads.answer; has other answers or labels in answer" in said.out) is not same
    old, new = (load_file(path / "model" / "model.safetensors") for path in (vqa, run))
    kept = {name: torch.allclose(old[name], new[name], atol=1e-6) for name in old if name.endswith("linear.weight")}
    assert kept.pop("heads.answer.transform.linear.weight") is same
    assert all(kept.values())


# ------------------------------------------------------------------------------------------------------------- tasks


CONTRAST = "task.contrast={width: 16}"


@pytest.mark.parametrize("kind", ["dual", "both"])
def test_retrieval_with_a_dual_encoder(kind: str, shapes: Shapes, dual: Path, tmp_path: Path) -> None:
    both = ("task.ranking={loss: triplet, hardest: 1}", "task.shortlist=3") if kind == "both" else ("task.ranking=",)
    more = (CONTRAST, *both, "batch.size=4", "task.judged_images=12", "task.folds=2")
    run = finetuned("retrieval", dual, shapes, tmp_path / "run", *more)
    out = tmp_path / "r.json"
    given = ("--model", run / "model", "--data", shapes.dev)
    done(vlp("evaluate", *given, "--out", out, "--html", tmp_path / "page.html"))
    report = report_of(out)
    for name, value in evaluation_of(run).items():
        assert report["metrics"][name] == pytest.approx(value, abs=1e-6), name
    assert report["metrics"]["images"] == 12
    low, high = report["intervals"]["text_to_image_recall@5"]
    assert low <= report["metrics"]["text_to_image_recall@5"] <= high
    done(vlp_process("evaluate", *given, "--out", tmp_path / "two.json", "--nproc", 2))
    assert report_of(tmp_path / "two.json")["metrics"] == pytest.approx(report["metrics"], abs=1e-6)


def test_classes_of_ones_own_from_a_table(shapes: Shapes, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = [["image", "text", "label"]]
    for number in range(24):
        name = f"{number}.jpg"
        (photos / name).write_bytes(encoded(Image.new("RGB", (32, 32), (250, 20, 20) if number % 2 else (20, 20, 250))))
        rows.append([name, "what is it", "warm" if number % 2 else "cold"])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    given = ("--file", tmp_path / "labels.csv", "--images", photos, "--question", "text", "--answer", "label")
    done(vlp_data("csv", *given, "--out", tmp_path / "shards"))
    backbone = "model.image.source={kind: pixels, backbone: test_convnext, level: -2, size: 32}"
    more = ("model=uniter_tiny_pixels", backbone, "model.text.layer={width: 32, heads: 2, ffn: 64}")
    data = (f"data.train={tmp_path / 'shards'}", f"data.val={tmp_path / 'shards'}", f"tokenizer={shapes.tokenizer}")
    length = (*SHORT, "run.steps=12", "optimizer.learning_rate=0.003", f"run.dir={tmp_path / 'run'}")
    done(vlp("finetune", "classify", *more, *data, *length))
    found = evaluation_of(tmp_path / "run")
    assert found["examples"] == 24
    assert found["accuracy"] == 1
    assert found["macro_f1"] == 1
    assert read_yaml(tmp_path / "run" / "config.yaml")["task"]["labels"] == ["cold", "warm"]
    results = tmp_path / "results.json"
    done(vlp("evaluate", "--model", tmp_path / "run" / "model", "--data", tmp_path / "shards", "--results", results))
    assert {each["answer"] for each in json.loads(results.read_text())} == {"cold", "warm"}
