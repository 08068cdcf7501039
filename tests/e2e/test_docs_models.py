"""What docs/python.md and docs/backbones.md show runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.e2e.conftest import Shapes, done, vlp
from tests.unit.backbones import config_of, source_of
from vlp.models.model import ModelConfig, Network
from vlp.vision_language_model import TextEncoder, VisionLanguageModel


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.S)


def pixels_model(folder: Path, shapes: Shapes) -> None:
    """A model of pixels that knows the world's words."""
    text = TextEncoder(shapes.tokenizer, 16)
    values = config_of(source_of("convolutions")).plain()
    values["text"]["vocab_size"] = text.vocab_size
    VisionLanguageModel(Network(ModelConfig.parse(values)), text).save_pretrained(folder)


def test_the_python_of_the_docs(
    root: Path, shapes: Shapes, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(single / "model", tmp_path / "runs" / "uniter" / "model")
    pixels_model(tmp_path / "runs" / "pixels" / "model", shapes)
    Image.new("RGB", (32, 24), "red").save("photo.jpg")
    width = VisionLanguageModel.from_pretrained("runs/uniter/model").config.image.source.width  # type: ignore[union-attr]
    np.savez("photo.npz", features=np.ones((3, width), np.float32), norm_bb=np.tile([0, 0, 1, 1], (3, 1)))
    found = blocks(root / "docs" / "python.md", "python")
    assert len(found) >= 5
    names: dict[str, object] = {}
    for block in found:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["scores"].shape == (1, 2)  # type: ignore[attr-defined]


def test_the_configs_of_the_docs(root: Path) -> None:
    found = blocks(root / "docs" / "backbones.md", "yaml")
    assert len(found) >= 4
    for block in found:
        values = yaml.safe_load(block)
        values.setdefault("image", {"source": {"kind": "regions"}, "parts": [{"kind": "feature"}]})
        values["encoder"] = [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}]
        ModelConfig.parse(values, "docs/backbones.md")


def test_the_commands_of_the_docs(root: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(single / "model", tmp_path / "runs" / "uniter" / "model")
    commands = re.findall(r"^    vlp (.*)$", (root / "docs" / "backbones.md").read_text(encoding="utf-8"), re.M)
    assert len(commands) == 2
    for command in commands:
        done(vlp(*command.split()))
