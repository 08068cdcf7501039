"""Widths, classes and attributes of a model against those of the shards, checked before a run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.tokenizer import save, train
from tests.unit.import_running import vlp_data
from tests.unit.region_making import tsv_line, write_tsv
from tests.unit.shard_making import CLASSES, WIDTH, photo, region_members, texts, write_tar
from tests.unit.task_making import WORDS
from vlp.assemble import Assembled, assemble, make_loader
from vlp.data.index import build_index
from vlp.errors import ConfigError
from vlp.models.image import RegionSource
from vlp.run import RunConfig

OBJECTS = {"kind": "region_class", "labels": "hard", "over": "all", "by_confidence": True}
ATTRIBUTES = {**OBJECTS, "of": "attribute"}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """`soft`: class probabilities; `hard`: numbers of classes and attributes, undeclared; `tsv`: a TSV's."""
    save(train([" ".join(WORDS)] * 9, 200, lowercase=True), tmp_path / "tokenizer")
    for name in ("soft", "hard", "bare"):
        members: list[tuple[str, bytes]] = []
        for number in range(4):
            ids: dict[str, Any] = {"class_probs": None}
            if name == "hard":
                ids |= {"classes": np.array([1, 7]), "attributes": np.array([0, 3])}
            key = f"k{number}"
            members += [(f"{key}.json", texts(f"the {WORDS[number]} circle", id=number)), (f"{key}.jpg", photo(number))]
            members += region_members(key, **({} if name == "soft" else ids))
        write_tar(tmp_path / name / "a.tar", members)
        build_index(tmp_path / name)
    tsv = write_tsv(tmp_path / "x.tsv", [tsv_line(str(number), width=WIDTH, number=number) for number in range(4)])
    assert vlp_data("regions", "--data", tmp_path / "bare", "--out", tmp_path / "tsv", "--tsv", tsv) == 0
    return tmp_path


def assembled(shards: Path, data: list[str], objectives: dict[str, Any] | None = None, **source: Any) -> Assembled:
    layer = {"width": 8, "heads": 2, "ffn": 16}
    values = {
        "model": {
            "text": {"max_length": 16, "layer": layer},
            "image": {"source": {"kind": "regions", **source}, "parts": [{"kind": "feature"}]},
            "encoder": [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}],
        },
        "tokenizer": str(shards / "tokenizer"),
        "task": {"name": "pretrain", "objectives": objectives or {"mlm": {"kind": "masked_language"}}},
        "data": {"train": [str(shards / name) for name in data]},
        "batch": {"size": 4},
        "run": {"dir": str(shards / "out"), "steps": 2},
    }
    return assemble(RunConfig.parse(values))


def _source(made: Assembled) -> RegionSource:
    source = made.config.model.image.source
    assert isinstance(source, RegionSource)
    return source


@pytest.mark.parametrize(
    ("data", "classes", "attributes"),
    [("soft", CLASSES, None), ("hard", 8, 4), ("tsv", 1600, 400), ("bare", None, None)],
)
def test_sizes_are_taken_from_the_shards(shards: Path, data: str, classes: int, attributes: int) -> None:
    source = _source(assembled(shards, [data], attributes="auto"))
    assert (source.width, source.classes, source.attributes) == (WIDTH, classes, attributes)


@pytest.mark.parametrize(
    ("data", "source", "said"),
    [
        ("soft", {"width": 2048}, f"model.image.source.width is 2048, but the shards have {WIDTH}"),
        ("soft", {"classes": 1601}, f"model.image.source.classes is 1601, but the shards have {CLASSES}"),
        ("hard", {"classes": 7}, "model.image.source.classes is 7, but the shards have numbers up to 7"),
        ("tsv", {"attributes": 399}, "model.image.source.attributes is 399, but the shards have numbers up to 399"),
    ],
)
def test_another_size_is_refused_with_both_numbers(shards: Path, data: str, source: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        assembled(shards, [data], **source)


def test_a_model_may_know_more_classes_than_the_shards_show(shards: Path) -> None:
    source = _source(assembled(shards, ["hard"], classes=1600, attributes=400))
    assert (source.classes, source.attributes) == (1600, 400)
    assert _source(assembled(shards, ["bare"], classes=1600, attributes=400)).attributes is None


def test_objects_and_attributes_reach_the_batch(shards: Path) -> None:
    made = assembled(shards, ["tsv"], {"objects": OBJECTS, "attributes": ATTRIBUTES}, attributes="auto")
    assert made.task.heads["attributes"].classes == 400  # type: ignore[union-attr]
    (step,) = make_loader(made, range(1))
    (batch,) = step.micro_batches
    seen = batch.targets["attributes"].values
    known = {int(number) for line in range(4) for number in _numbers(line)[1]}
    assert set(seen["class"].tolist()) <= known
    assert len(seen["class"]) == 12
    assert 0 < float(seen["confidence"].max()) <= 0.5  # the attributes' own, not the classes'
    assert set(batch.targets["objects"].values["class"].tolist()) <= {
        int(number) for line in range(4) for number in _numbers(line)[0]
    }


def _numbers(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Classes and attributes of a line, drawn as `tsv_line` draws them."""
    random = np.random.default_rng(number)
    random.random((3, WIDTH)), random.random(3)
    return random.integers(0, 1600, 3), random.integers(0, 400, 3)


@pytest.mark.parametrize(
    ("data", "objective", "said"),
    [
        ("hard", {"kind": "region_class"}, "numbers of classes alone .* say labels: hard"),
        ("bare", {"kind": "region_class"}, "needs class probabilities .* hold none"),
        ("bare", OBJECTS, "hold none"),
        ("soft", ATTRIBUTES, "needs attributes .* hold none"),
    ],
)
def test_an_objective_without_its_targets_is_refused(
    shards: Path, data: str, objective: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"task.objectives.guess: .*{said}"):
        assembled(shards, [data], {"guess": objective}, attributes="auto")


def test_regions_of_two_networks_are_not_mixed(shards: Path) -> None:
    for name, weights in (("one", "aa"), ("same", "aa"), ("other", "bb")):
        write_tar(shards / name / "a.tar", [("k.json", texts("the red circle")), *region_members("k")])
        build_index(shards / name, made_by={"regions": {"weights": weights}})
    assembled(shards, ["one", "same", "soft"])
    with pytest.raises(ConfigError, match=r"one were made with the weights aa and those of .*other with bb"):
        assembled(shards, ["one", "other"])
