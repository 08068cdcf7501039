"""Every folder of official numbers, in float64 and float32; and the checkpoints that authors published, at full size.

The folders are looked for in the one that VLP_PARITY names (default: ../shared/parity); without it the tests are
skipped. Measured: 3e-14 at most in float64, 3e-5 in float32; gradients within a ninth of what is allowed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.numerics.parity import FAMILIES, Check, compare, main
from vlp.config import read_yaml
from vlp.models.blocks import unrolled
from vlp.models.convert.account import account, plan
from vlp.models.convert.checkpoint import to_ours, to_theirs
from vlp.models.convert.family import Official
from vlp.models.convert.registry import FAMILIES as CHECKPOINTS
from vlp.models.model import ModelConfig
from vlp.resources import shipped

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("VLP_PARITY", ROOT.parent / "shared" / "parity"))
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no official numbers: {FOLDER} is not a folder (set VLP_PARITY to one)"
)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_numbers_are_the_official_ones(family: str) -> None:
    checks = compare(FOLDER / family)
    official = load_file(FOLDER / family / "out_f64.safetensors")
    assert {check.what for check in checks if check.precision == "float64"} >= set(official)
    assert any(check.what.startswith("gradients") for check in checks)
    assert not [check for check in checks if not check.good]


def spoilt(tmp_path: Path, **weights: float) -> Path:
    """A folder whose weights are changed a little."""
    made = tmp_path / "fixture"
    shutil.copytree(FOLDER / "uniter", made, copy_function=shutil.copyfile)
    tensors = load_file(made / "tiny.safetensors")
    for name, change in weights.items():
        full = next(each for each in tensors if each.endswith(name.replace("__", ".")))
        tensors[full] = tensors[full] + change
    save_file(tensors, made / "tiny.safetensors")
    return made


def differing(folder: Path) -> list[Check]:
    return [check for check in compare(folder) if not check.good]


def test_a_small_change_is_seen_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = spoilt(tmp_path, itm_output__bias=torch.tensor([1e-6, 0.0]))  # type: ignore[arg-type]
    assert {check.what for check in differing(folder)} == {
        "out.itm.scores",
        "out.itm.loss_raw",
        "out.itm.loss_mean",
    }
    assert main(folder) == 1
    assert "DIFFERS in float64" in capsys.readouterr().out


def test_an_output_that_is_not_compared_exits_1(tmp_path: Path) -> None:
    folder = spoilt(tmp_path)
    io = load_file(folder / "io.safetensors")
    save_file({**io, "out.itm.unheard_of": torch.zeros(1)}, folder / "io.safetensors")
    (bad,) = differing(folder)
    assert (bad.what, bad.note) == ("out.itm.unheard_of", "not compared")


# ------------------------------------------------------------------------------------ the published checkpoints

KINDS = {
    ("visualbert", 0): "visualbert",
    ("uniter", 0): "uniter",
    ("vl_bert", 0): "vl_bert",
    ("vilbert", 0): "vilbert",
    ("lxmert", 0): "lxmert",
    ("vilt", 0): "hf-vilt",
    ("vilt", 1): "hf-vilt",
    ("vilt", 2): "vilt",
}
"""Folder and number of the variant in its base_keys.json, and what `vlp convert` calls it."""


def variant(folder: str, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / folder / "base_keys.json").read_text())["variants"][number]
    return found


def official_of(folder: str, number: int) -> Official:
    return Official(Path("base_keys.json"), variant(folder, number)["config"])


@pytest.mark.parametrize(("folder", "number"), KINDS)
def test_a_full_size_checkpoint_and_back_is_the_identity(folder: str, number: int) -> None:
    kind, keys = KINDS[folder, number], variant(folder, number)["keys"]
    family, official = CHECKPOINTS[kind], official_of(folder, number)
    # Numbers that tell each place of each tensor; random ones take four times as long to draw.
    places = torch.arange(max(math.prod(shape) for _, shape, _ in keys), dtype=torch.float32)
    tensors: dict[str, Tensor] = {
        name: (places[: math.prod(shape)] + number).view(shape) for number, (name, shape, _) in enumerate(keys)
    }
    for name, source in variant(folder, number)["tied"].items():
        tensors[name] = tensors[source]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    # The authors' ViLT has a decoder of its own.
    made = plan(family, family.config(official), shapes, folder, untied=kind == "vilt")
    found = account(family, made, tensors, family.counts(official), folder)
    back = to_theirs(made, to_ours(made, tensors))
    assert set(back) | set(found.tied) | set(found.unused) == set(tensors)
    assert set(found.tied) <= set(variant(folder, number)["tied"])
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in back.items())
    assert all("q_dense" in name for name in found.unused)
    counted = sum(tensor.numel() for tensor in back.values()) + sum(tensors[name].numel() for name in found.unused)
    assert counted == variant(folder, number)["params"]["total"]


@pytest.mark.parametrize("family", ["visualbert", "uniter", "vl_bert", "vilbert", "lxmert"])
def test_the_shipped_config_is_what_the_authors_config_says(family: str) -> None:
    theirs = CHECKPOINTS[family].config(official_of(family, 0))
    ours = ModelConfig.parse(read_yaml(shipped("model", f"{family}_base")), family)
    assert list(unrolled(theirs.encoder)) == list(unrolled(ours.encoder))
    same = {"encoder": ours.encoder, "image": _image(theirs, ours), "pooler": ours.pooler}
    assert theirs.model_copy(update=same) == ours
    assert theirs.pooler == ours.pooler


def _image(theirs: ModelConfig, ours: ModelConfig) -> Any:
    """What the authors' config does not say, taken from ours: how many regions an image may have."""
    source = theirs.image.source.model_copy(update={"max_regions": ours.image.source.max_regions})  # type: ignore[union-attr]
    return theirs.image.model_copy(update={"source": source})
