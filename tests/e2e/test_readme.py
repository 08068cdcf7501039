"""The README's commands, run as they stand there in an empty folder; only shortened."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import SMALL, done, vlp, vlp_data

SHORT = {"4000": "60", "--nproc": None, "2": None, "50": "5"}
"""Words of a command that are replaced, or left out: ranks are tested elsewhere."""


def commands(root: Path) -> list[str]:
    """The `vlp` and `vlp-data` lines of the README's blocks, without their comments."""
    blocks = (root / "README.md").read_text(encoding="utf-8").split("```")[1::2]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("vlp ", "vlp-data "))]


def photos(folder: Path) -> None:
    """The user's own files that the README speaks of."""
    for name in ("train2017", "photos", "regions"):
        (folder / name).mkdir()
    Image.new("RGB", (32, 24), "red").save(folder / "train2017" / "1.jpg")
    shutil.copy(folder / "train2017" / "1.jpg", folder / "photos" / "1.jpg")
    (folder / "photos" / "1.txt").write_text("a red photo\n")
    (folder / "captions.tsv").write_text("1.jpg\ta red photo\n")
    captions = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 32, "height": 24}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a red photo"}],
    }
    (folder / "captions_train2017.json").write_text(json.dumps(captions))
    box = np.array([[0.1, 0.1, 0.5, 0.5, 0.4, 0.4]], np.float32)
    regions = {"features": np.ones((1, 4), np.float32), "norm_bb": box, "conf": np.ones(1, np.float32)}
    np.savez(folder / "regions" / "1.npz", **regions, soft_labels=np.full((1, 2), 0.5, np.float32))


def short(command: str) -> list[str]:
    program, *words = shlex.split(command)
    kept = [SHORT.get(word, word) for word in words]
    arguments = [word for word in kept if word is not None]
    if arguments[0] in ("pretrain", "finetune"):
        arguments += ["run.steps=2", "batch.size=8", *SMALL]
        arguments += ["run.epochs=null"] if arguments[0] == "finetune" else []
    if arguments[0] == "pretrain" or program == "vlp-data":
        return [program, *arguments]
    # A fine-tuned model has the pre-trained one's sizes already.
    return [program, *(word for word in arguments if not word.startswith("model.text"))]


def test_every_command_of_the_readme(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = commands(root)
    assert len(found) >= 15
    for command in found:
        program, *arguments = short(command)
        if arguments[:2] == ["index", "shards/from_elsewhere"]:
            shutil.copytree("shards/mine", "shards/from_elsewhere", ignore=shutil.ignore_patterns("index"))
        done((vlp_data if program == "vlp-data" else vlp)(*arguments))
    assert json.loads(Path("vqa.json").read_text())["metrics"]["questions"] > 0
    assert list(Path("features").glob("*.parquet"))
    assert Path("world.html").stat().st_size > 10_000
