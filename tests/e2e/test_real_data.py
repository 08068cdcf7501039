"""The main job on real photos: with a detector's regions, and from pixels. Short; skipped where the data is absent."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import SMALL, done, evaluation_of, lines, steps_of, vlp, vlp_data
from vlp.config import read_yaml, write_yaml
from vlp.data.index import open_index

LENGTH = (
    "batch.size=32",
    "batch.micro_tokens=2000",
    "optimizer.learning_rate=0.01",
    "schedule.warmup=0",
    "evaluation.limit=20",
)


def part_of(data: Path, name: str) -> Path:
    if not (data / name).is_dir():
        pytest.skip(f"no real data: {data / name} is not a folder")
    return data / name


def check_learning(run: Path, steps: int) -> None:
    """All losses are finite, and that of hidden words is lower at the end than at the start."""
    found = steps_of(run)
    assert len(found) == steps
    for line in found:
        assert all(math.isfinite(value) for value in line.values())
        assert line["skipped_steps"] == line["quarantined"] == 0
    words = [line["loss/mlm"] for line in found if "loss/mlm" in line]
    third = max(1, len(words) // 3)
    assert sum(words[-third:]) / third < 0.97 * sum(words[:third]) / third, words
    assert all(math.isfinite(value) for value in evaluation_of(run).values())


# ---------------------------------------------------------------------------------------------------------- regions


@pytest.fixture(scope="module")
def coco(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos, regions = part_of(test_data, "coco_mini"), part_of(test_data, "regions/coco_mini")
    out = tmp_path_factory.mktemp("coco")
    given = ("--captions", photos / "annotations" / "captions_train.json", "--images", photos / "images")
    done(vlp_data("coco", *given, "--regions", regions, "--out", out))
    manifest = open_index(out).manifest
    assert (manifest.samples, manifest.feature_width, manifest.class_count) == (80, 1280, 81)
    return out


@pytest.mark.parametrize(("name", "steps"), [("uniter_tiny", 20), ("lxmert_tiny", 12)])
def test_regions_of_real_photos(name: str, steps: int, coco: Path, test_data: Path, tmp_path: Path) -> None:
    words = part_of(test_data, "bert_vocab")
    given = (f"data.train={coco}", f"data.val={coco}", f"tokenizer={words}", f"run.dir={tmp_path / 'run'}")
    done(vlp("pretrain", name, *given, *SMALL, *LENGTH, f"run.steps={steps}"))
    check_learning(tmp_path / "run", steps)
    model = read_yaml(tmp_path / "run" / "config.yaml")["model"]
    source = model["image"]["source"]
    assert (model["text"]["vocab_size"], source["width"], source["classes"]) == (30522, 1280, 81)


# ----------------------------------------------------------------------------------------------------------- pixels


@pytest.fixture(scope="module")
def viic(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first photos of a larger set, and a tokenizer of their captions."""
    photos = part_of(test_data, "uit_viic")
    folder = tmp_path_factory.mktemp("viic")
    captions = (photos / "captions.tsv").read_text(encoding="utf-8").splitlines()[:500]
    (folder / "captions.tsv").write_text("\n".join(captions) + "\n", encoding="utf-8")
    done(vlp_data("tsv", "--file", folder / "captions.tsv", "--images", photos / "images", "--out", folder / "shards"))
    made = ("--vocab-size", 800, "--out", folder / "tokenizer")
    done(vlp_data("tokenizer", folder / "shards", *made))
    manifest = open_index(folder / "shards").manifest
    assert (manifest.samples, manifest.shards[0].captions, manifest.feature_width) == (100, 500, None)
    return folder


PIXELS = {"kind": "pixels", "backbone": "test_resnet", "size": 96}
TASK = {
    "name": "pretrain",
    "combine": "all",
    "objectives": {"mlm": {"kind": "masked_language"}, "itm": {"kind": "matching"}},
}


@pytest.mark.parametrize("base", ["uniter_tiny", "lxmert_tiny"])
def test_pixels_of_real_photos(base: str, viic: Path, tmp_path: Path) -> None:
    # The shipped model with another source, as a mapping in a config of one's own.
    model = read_yaml(vlp_config(base))
    model["image"]["source"] = PIXELS
    config = {
        "model": model,
        "task": TASK,
        "tokenizer": "tokenizer",
        "data": {"train": "shards", "val": "shards", "workers": 1},
        "optimizer": {"clip_norm": 5.0},
        "run": {"dir": str(tmp_path / "run"), "steps": 12},
    }
    write_yaml(viic / f"{base}.yaml", config)
    done(vlp("pretrain", viic / f"{base}.yaml", *SMALL, *LENGTH))
    check_learning(tmp_path / "run", 12)
    given = ("--model", tmp_path / "run" / "model", "--data", viic / "shards", "--what", "pooled,image")
    done(vlp("extract", *given, "--out", tmp_path / "features"))
    table = pa.concat_tables(map(pq.read_table, sorted((tmp_path / "features").glob("*.parquet"))))
    assert table.num_rows == 500
    first = table["image"][0].as_py()
    assert (len(first), len(first[0])) == (9, 32)  # a 3 x 3 grid of 96 pixels in steps of 32
    assert json.loads((tmp_path / "features" / "manifest.json").read_text())["quarantined"] == 0
    assert lines(tmp_path / "run" / "quarantine.jsonl") == []


def vlp_config(name: str) -> Path:
    from vlp import resources

    return resources.shipped("model", name)


# ----------------------------------------------------------------------------------------------------- the long runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniter_tiny", "lxmert_tiny", "uniter_tiny_pixels", "lxmert_tiny_pixels"])
def test_shipped_recipes_on_real_photos(name: str, coco: Path, test_data: Path, tmp_path: Path) -> None:
    """The recipes as they are shipped, for some hundred steps."""
    words = part_of(test_data, "bert_vocab")
    given = (f"data.train={coco}", f"tokenizer={words}", f"run.dir={tmp_path / 'run'}")
    done(vlp("pretrain", name, *given, "run.steps=300"))
    found = [line["loss/mlm"] for line in steps_of(tmp_path / "run") if "loss/mlm" in line]
    tenth = len(found) // 10
    assert sum(found[-tenth:]) < 0.7 * sum(found[:tenth])
