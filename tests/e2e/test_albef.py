"""The ALBEF recipe from photos: masked words, contrast with momentum and queue, hard negatives; and what follows it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.e2e.conftest import Shapes, done, evaluation_of, lines, steps_of, vlp

LAYER = "{width: 32, heads: 2, ffn: 64}"
IMAGE_LAYER = "{width: 32, heads: 2, ffn: 64, norm: pre, eps: 1.0e-6}"
SMALL = (f"model.text.layer={LAYER}", f"model.image.layer={IMAGE_LAYER}", "precision=fp32", "log.tensorboard=false")
LENGTH = ("run.steps=4", "batch.size=12", "batch.micro_tokens=300", "checkpoint.every=2", "evaluation.limit=30")


def test_the_recipe_trains_goes_on_and_is_fine_tuned(shapes: Shapes, tmp_path: Path) -> None:
    given = ("pretrain", "albef_tiny", *shapes.overrides, f"tokenizer={shapes.tokenizer}", *SMALL, *LENGTH)
    run, again = tmp_path / "run", tmp_path / "again"
    done(vlp(*given, f"run.dir={run}"))
    for record in steps_of(run):
        assert record.keys() >= {"loss/mlm", "loss/itc", "loss/itm", "itc_accuracy", "itc_temperature", "itm_accuracy"}
    assert evaluation_of(run).keys() >= {"loss/itc", "itc_text_to_image_recall@1", "itm_accuracy", "mlm_accuracy"}

    # The steps after the checkpoint again, from a run that was stopped there.
    done(vlp(*given, f"run.dir={again}"))
    last = again / "checkpoints" / "step-00000004"
    kept = load_file(last / "rank-00000.safetensors")
    assert int(kept["queue/seen@0"]) == 4 * 12
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    done(vlp(*given, f"run.dir={again}", "--resume"))
    resumed = load_file(last / "rank-00000.safetensors")
    assert {name.partition("/")[0] for name in kept} >= {"weight", "momentum", "queue"}
    for name, tensor in kept.items():
        assert torch.equal(resumed[name], tensor), name

    more = ("task.contrast={width: 64, image: first}", "task.judged_images=12", "run.epochs=", "run.steps=1")
    data = (*shapes.overrides, "batch.size=4", "precision=fp32", f"run.dir={tmp_path / 'tuned'}")
    done(vlp("finetune", "retrieval", f"model={run / 'model'}", *data, *more))
    assert evaluation_of(tmp_path / "tuned")["images"] == 12
    assert any("itc" in name for name in load_file(tmp_path / "tuned" / "model" / "model.safetensors"))
    assert lines(tmp_path / "tuned" / "metrics.jsonl")[0]["itc_accuracy"] >= 0
