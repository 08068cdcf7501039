"""The tiny recipes of all systems on one set of region shards: features, boxes, confidences and class probabilities."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Shapes, done, evaluation_of, steps_of, vlp
from vlp import resources
from vlp.config import read_yaml

RECIPES = ("lxmert_tiny", "unicoder_vl_tiny", "uniter_tiny", "vilbert_tiny", "visualbert_tiny", "vl_bert_tiny")
SHORT = (
    "run.steps=8",
    "batch.size=16",
    "batch.micro_tokens=400",
    "precision=fp32",
    "evaluation.limit=20",
    "model.text.layer.width=32",
    "model.text.layer.heads=2",
    "model.text.layer.ffn=32",
)


def test_each_system_has_a_tiny_recipe_beside_the_published_one() -> None:
    named = {name.rsplit("_", 1)[0] for name in resources.names("pretrain") if name.endswith("_base")}
    assert {f"{family}_tiny" for family in named} >= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_any_region_shards(name: str, shapes: Shapes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done(vlp("pretrain", name, *shapes.overrides, f"tokenizer={shapes.tokenizer}", f"run.dir={run}", *SHORT))
    found = steps_of(run)
    assert len(found) == 8
    assert all(math.isfinite(value) for line in found for value in line.values())
    measured = evaluation_of(run)
    heads = {key.removeprefix("loss/") for key in measured if key.startswith("loss/")}
    assert {key.removeprefix("loss/") for line in found for key in line if key.startswith("loss/")} <= heads
    assert all(math.isfinite(value) for value in measured.values())


@pytest.mark.parametrize(("name", "loss"), [("uniter_tiny", "wra"), ("lxmert_tiny", "mrc_kl")])
def test_what_a_tiny_recipe_leaves_out_is_added_as_its_comment_says(
    name: str, loss: str, shapes: Shapes, tmp_path: Path
) -> None:
    text = resources.shipped("pretrain", name).read_text(encoding="utf-8")
    (added,) = re.findall(rf"^#   '(task\.objectives\.{loss}=.*)'$", text, re.MULTILINE)
    run = tmp_path / "run"
    done(vlp("pretrain", name, *shapes.overrides, f"tokenizer={shapes.tokenizer}", f"run.dir={run}", *SHORT, added))
    wanted = yaml.safe_load(added.partition("=")[2])
    assert wanted.items() <= read_yaml(run / "config.yaml")["task"]["objectives"][loss].items()
    assert math.isfinite(evaluation_of(run)[f"loss/{loss}"])


def test_half_of_a_batch_is_text_alone(shapes: Shapes, tmp_path: Path) -> None:
    given = (*shapes.overrides, f"tokenizer={shapes.tokenizer}", *SHORT, "run.steps=2")
    tokens = {}  # of an example
    for share in ("0", "0.5"):
        run = tmp_path / share
        done(vlp("pretrain", "vl_bert_tiny", *given, f"data.text_only_share={share}", f"run.dir={run}"))
        tokens[share] = sum(line["tokens_per_second"] / line["examples_per_second"] for line in steps_of(run))
    assert tokens["0.5"] < tokens["0"]  # eight of sixteen examples have no region


def test_questions_are_answered_and_captions_written(shapes: Shapes, tmp_path: Path) -> None:
    objectives = (
        "{qa: {kind: question_answering}, lm: {kind: prefix_language}, mlm: {kind: masked_language, unit: span}}"
    )
    given = (*shapes.overrides, f"tokenizer={shapes.tokenizer}", *SHORT, f"task.objectives={objectives}")
    options = ("task.texts=both", "task.combine=one", "task.captioned_images=5", f"run.dir={tmp_path / 'run'}")
    done(vlp("pretrain", "lxmert_tiny", *given, *options))
    found = evaluation_of(tmp_path / "run")
    assert 0 <= found["qa_accuracy"] <= 1
    assert 0 <= found["caption_exact_match"] <= 1
    assert "red" in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")  # the vocabulary of answers
