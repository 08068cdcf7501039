"""From a config to a run's parts: mixtures, text-only datasets, views of images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_tools.tokenizer import save, train
from tests.unit.shard_making import photo, region_members, texts, write_tar
from tests.unit.task_making import WORDS
from vlp.assemble import Assembled, assemble, make_loader
from vlp.data.index import build_index
from vlp.errors import ConfigError
from vlp.run import RunConfig
from vlp.types import Batch, PixelBatch

OBJECTIVES = {"mlm": {"kind": "masked_language"}, "itm": {"kind": "matching"}}
PIXELS = {"kind": "pixels", "backbone": "test_convnext", "size": 32}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Directories with 8, 2 and 4 captions: of regions and photos, likewise, and of text only."""
    for name, count in (("many", 8), ("few", 2), ("words", 4)):
        members = []
        for number in range(count):
            members.append((f"{name}{number}.json", texts(f"the {WORDS[number]} circle on the left")))
            if name != "words":
                members += [(f"{name}{number}.jpg", photo(number)), *region_members(f"{name}{number}")]
        write_tar(tmp_path / name / "a.tar", members)
        build_index(tmp_path / name, text_only=name == "words")
    save(train([" ".join(WORDS)] * 9, 200, lowercase=True), tmp_path / "tokenizer")
    return tmp_path


def assembled(
    shards: Path,
    datasets: list[Any],
    source: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
    **data: Any,
) -> Assembled:
    layer = {"width": 8, "heads": 2, "ffn": 16}
    values = {
        "model": {
            "text": {"max_length": 16, "layer": layer},
            "image": {"source": source or {"kind": "regions"}, "parts": [{"kind": "feature"}]},
            "encoder": [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}],
        },
        "tokenizer": str(shards / "tokenizer"),
        "task": task or {"name": "pretrain", "objectives": OBJECTIVES},
        "data": {
            "train": [
                str(shards / each) if isinstance(each, str) else {**each, "path": str(shards / each["path"])}
                for each in datasets
            ],
            **data,
        },
        "batch": {"size": 12},
        "run": {"dir": str(shards / "out"), "steps": 5},
    }
    return assemble(RunConfig.parse(values))


def batches(made: Assembled, steps: int = 4) -> list[Batch]:
    found = []
    for step in make_loader(made, range(steps)):
        assert not step.failure
        assert not step.quarantined
        found += step.micro_batches
    return found


def drawn(made: Assembled, steps: int = 100) -> list[float]:
    counts = Counter(slot.dataset for step in range(steps) for slot in made.order.slots(step))
    return [counts[dataset] / counts.total() for dataset in range(len(made.train))]


def test_a_mixture_is_even_or_by_weight_or_by_temperature(shards: Path) -> None:
    both = ["many", "few"]
    assert drawn(assembled(shards, both)) == pytest.approx([1 / 2, 1 / 2], abs=0.01)
    weighted = [{"path": "many", "weight": 3}, "few"]
    assert drawn(assembled(shards, weighted)) == pytest.approx([3 / 4, 1 / 4], abs=0.01)
    assert drawn(assembled(shards, both, temperature=1)) == pytest.approx([8 / 10, 2 / 10], abs=0.01)
    assert drawn(assembled(shards, both, temperature=2)) == pytest.approx([2 / 3, 1 / 3], abs=0.01)


@pytest.mark.parametrize("source", [None, PIXELS])
@pytest.mark.parametrize("datasets", [["many", "words"], ["words", "many"]])
def test_text_only_datasets_are_learned_from_as_text(
    shards: Path, datasets: list[str], source: dict[str, Any] | None
) -> None:
    for batch in batches(assembled(shards, datasets, source)):
        bare = [row for row, length in enumerate(batch.image.packing.lengths) if length == 0]
        assert len(bare) == 6, "half of the mixture, and no text of it got another's image"
        matched = batch.targets["itm"].positions_K.tolist()
        assert sorted([*bare, *matched]) == list(range(12)), "what has no image matches nothing"
        masked = {
            row
            for row, (start, length) in enumerate(
                zip(batch.text.packing.starts_B1.tolist(), batch.text.packing.lengths, strict=False)
            )
            if any(start <= place < start + length for place in batch.targets["mlm"].positions_K.tolist())
        }
        assert set(bare) <= masked, "its words are guessed"


def test_views_change_from_epoch_to_epoch_and_not_from_run_to_run(shards: Path) -> None:
    augment = {"crop": {"kind": "resized", "area": [0.3, 0.6]}, "colour": {"brightness": 0.3}}
    seen: dict[str, list[bytes]] = {}
    for _ in range(2):
        for batch in batches(assembled(shards, ["few"], PIXELS, augment=augment)):
            assert isinstance(batch.image, PixelBatch)
            for name, pixels in zip(batch.ids, batch.image.pixels_P3HW, strict=True):
                seen.setdefault(name, []).append(pixels.numpy().tobytes())
    for looks in seen.values():
        assert looks[: len(looks) // 2] == looks[len(looks) // 2 :]
        assert len(set(looks)) > len(looks) // 4, "each epoch looks anew"
    plain = [batch for batch in batches(assembled(shards, ["few"], PIXELS)) if isinstance(batch.image, PixelBatch)]
    assert len({pixels.numpy().tobytes() for batch in plain for pixels in batch.image.pixels_P3HW}) == 2


def test_colours_of_a_model_without_pixels_are_refused(shards: Path) -> None:
    assembled(shards, ["few"], augment={"flip": {}})
    with pytest.raises(ConfigError, match=r"data\.augment\.colour: changes pixels, and the model reads regions only"):
        assembled(shards, ["few"], augment={"colour": {"hue": 0.1}})


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ({"name": "pretrain", "objectives": {**OBJECTIVES, "itc": {"kind": "contrast"}}}, "task.objectives.itc"),
        ({"name": "retrieval", "contrast": {}}, "task.contrast"),
        ({"name": "retrieval", "contrast": {}, "ranking": None}, "task.contrast"),
    ],
)
def test_contrast_of_texts_that_nothing_has_read_is_refused(shards: Path, task: dict[str, Any], key: str) -> None:
    """A single stream's [CLS] is one for all texts before it meets the image."""
    with pytest.raises(ConfigError, match=rf"{key}\.text: 'first' is one state for all texts, .*; say mean, or take a"):
        assembled(shards, ["few"], task=task)
    wanted = task.get("contrast", task.get("objectives", {}).get("itc"))
    wanted["text"] = "mean"
    assembled(shards, ["few"], task=task)
