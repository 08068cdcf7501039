"""What docs/features.md shows runs as it stands there, on the small world: its commands and its three applications."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import SMALL, Shapes, done, vlp
from vlp import Features


def blocks(root: Path, language: str) -> list[str]:
    parts = (root / "docs" / "features.md").read_text(encoding="utf-8").split("```")[1::2]
    return [block for part in parts for name, _, block in [part.partition("\n")] if name == language]


@pytest.fixture(scope="module")
def place(shapes: Shapes, single: Path, dual: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page speaks of: a pre-trained model, one that finds, and their shards."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(single / "model", folder / "runs" / "first" / "model")
    shutil.copytree(shapes.dev, folder / "shards" / "world" / "dev")
    run = ("finetune", "retrieval", f"model={dual / 'model'}", f"data.train={shapes.train}", *SMALL[1:])
    length = ("run.steps=3", "run.epochs=null", "batch.size=4", "data.val=null", "task.contrast={width: 16}")
    done(vlp(*run, *length, f"run.dir={folder / 'runs' / 'search'}"))
    return folder


def test_the_commands_and_the_applications(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="the extra `search` is not installed")
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.chdir(place)
    commands = [line for block in blocks(root, "") for line in block.splitlines() if line.startswith("vlp ")]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command)[1:]
        if words[0] == "demo" or "--image" in words:  # tested in a browser; a model of regions takes no photo
            continue
        said = done(vlp(*words))
        if words[0] == "index":
            assert "recall@10" in said.out
        if words[0] == "search":
            assert len(said.out.splitlines()) == 10
    vectors = Features("vectors").array("text.vector")
    assert len(np.unique(vectors.round(4), axis=0)) > len(vectors) / 2, "a text's vector is of its words"
    done(
        vlp(
            "extract", "--model", "runs/first/model", "--data", "shards/world/dev", "--out", "states", "--what", "image"
        )
    )
    shutil.copytree("runs/search/model", "retrieval")
    found = {block.splitlines()[0]: block for block in blocks(root, "python")}
    said = {}
    for name in ("# classifier", "# product search", "# captioner"):
        exec(compile(found[name], "docs/features.md", "exec"), {})
        said[name] = capsys.readouterr().out
    assert 0.5 < float(said["# classifier"].split()[1]) <= 1
    assert len(said["# product search"].splitlines()) == 3
    loss, _, caption = said["# captioner"].removeprefix("loss ").partition(": ")
    assert float(loss) < 1.5
    assert len(caption.split()) >= 3
