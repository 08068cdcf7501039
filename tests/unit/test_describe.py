"""What a model is made of, as a drawing and a table: every block stands there once, and the numbers add up."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.examples import of_blocks, shipped
from tests.unit.backbones import config_of, source_of
from vlp import resources
from vlp.describe import describe_model
from vlp.errors import ConfigError
from vlp.models.diagram import drawn
from vlp.models.flops import count_flops
from vlp.models.heads import ClassHead, ContrastHead, VocabularyHead
from vlp.models.model import ModelConfig, count_parameters, meta_model

SELF = {"sublayers": ["self", "ffn"]}
TOWERS: list[dict[str, Any]] = [
    {"stream": "text", "repeat": 2, **SELF},
    {"stream": "image", **SELF},
    {
        "repeat": 3,
        "blocks": [{"stream": "both", "sublayers": ["cross", "ffn"], "share": ["cross"]}, {"stream": "text", **SELF}],
    },
    {"stream": "both", "repeat": 2, "one_set": True, "sublayers": ["joint"], "share": ["joint"]},
]
DRAWN = """
+- 2 x ----------------------+      +----------------------------+
|        text > text         |      |       image > image        |
|            ffn             |      |            ffn             |
+----------------------------+      +----------------------------+
              |                                   |
+- 1 of 2, all 3 x ----------------------------------------------+
|         text > image         ===         image > text          |
|             ffn                              ffn               |
+----------------------------------------------------------------+
              |                                   |
+- 2 of 2, all 3 x ----------+                    |
|        text > text         |                    |
|            ffn             |                    |
+----------------------------+                    |
              |                                   |
+- 2 x one set --------------------------------------------------+
|                  text + image > text + image                   |
+----------------------------------------------------------------+
"""


def said(config: str, *overrides: str, **lengths: int) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        describe_model(config, overrides, **lengths)
    return out.getvalue()


def test_the_drawing_holds_each_line_of_the_config_once() -> None:
    drawing = drawn(of_blocks(*TOWERS), 66, ascii_only=True)
    assert DRAWN.strip("\n") in drawing
    assert drawing.isascii()
    assert "text: word + position +" in drawing
    assert "image: feature + box" in drawing
    assert "pooled: first, linear, tanh" in drawing


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", resources.names("model"))
def test_drawings_of_all_models_fit(name: str, width: int) -> None:
    config = ModelConfig.parse(yaml.safe_load(resources.shipped("model", name).read_text()))
    lines = drawn(config, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len([line for line in lines if line.startswith(("┌", "└")) or "     ┌" in line]) >= 2


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("name", ["lxmert_tiny", "uniter_tiny", "uniter_tiny_pixels"])
def test_what_is_said_fits_the_terminal_and_adds_up(name: str, columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = said(name)
    assert max(map(len, text.splitlines())) <= int(columns)
    table = text.split("parameters")[1]
    numbers = re.findall(r" ([\d,]{3,}) +([\d,]+\.\d)(?: |$)", table, re.M)
    total = re.search(r"([\d,]+) parameters, heads not counted", text)
    assert total is not None
    assert sum(int(size.replace(",", "")) for size, _ in numbers) == int(total[1].replace(",", ""))
    spent = re.search(r"([\d.]+) GFLOP forward for one example of (\d+) text and (\d+) image tokens", text)
    assert spent is not None
    mega = sum(float(flops.replace(",", "")) for _, flops in numbers)
    assert mega / 1e3 == pytest.approx(float(spent[1]), abs=0.006)


def test_operations_are_those_of_the_formula() -> None:
    """A block of J tokens and width H: 2 J (4 H^2 + 2 H F) for the linears, 4 J^2 H for scores and sums."""
    config = of_blocks({"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]})
    flops = count_flops(meta_model(config), text_tokens=9, regions=5)
    tokens, width, ffn = 14, 16, 24
    assert flops.of("encoder.blocks.0") == 2 * tokens * (4 * width**2 + 2 * width * ffn) + 4 * tokens**2 * width
    assert flops.image_tokens == 5
    assert flops.total == flops.of("text") + flops.of("image") + flops.of("encoder") + flops.of("pooler")


def test_blocks_that_run_again_cost_again() -> None:
    block = {"stream": "text", "repeat": 3, "sublayers": ["self", "ffn"]}
    once, thrice = (meta_model(of_blocks({**block, "one_set": one_set})) for one_set in (True, False))
    assert count_flops(once, 6, 2).total == count_flops(thrice, 6, 2).total
    assert count_parameters(once.encoder) * 3 == count_parameters(thrice.encoder)


def test_frozen_backbones_and_heads_are_told(tmp_path: Path) -> None:
    config = config_of(source_of("patches and their class token", train=1), beside_regions=True)
    heads = {"mlm": VocabularyHead(), "itm": ClassHead(reads="example", classes=2), "itc": ContrastHead(width=8)}
    config = config.model_copy(update={"heads": heads})
    model = meta_model(config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(config.plain()))
    text = " ".join(said(str(path), text_tokens=5, regions=3).split())
    assert f"{count_parameters(model):,} parameters, {trained:,} of them trained" in text
    assert "one example of 5 text and 13 image tokens" in text
    assert "head mlm" in text
    assert "head itc" in text
    assert "then a grid: feature + box" in text


def test_a_run_s_config_and_a_trained_model_are_described(tmp_path: Path) -> None:
    config = shipped("uniter_tiny")
    meta = tmp_path / "model"
    meta.mkdir()
    (meta / "config.json").write_text(config.model_dump_json())
    assert "3 x both" in said(str(meta))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": "model"}))
    assert said(str(tmp_path / "run.yaml")) == said(str(meta))
    assert "2 x both" in said("uniter_tiny", "encoder.0.repeat=2")
    with pytest.raises(ConfigError, match="no file or shipped model is called"):
        said("nothing")
