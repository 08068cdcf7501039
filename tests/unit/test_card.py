"""The card that a model is saved with: what it is, was trained with, on, and how it did; no path of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.examples import shipped
from tests.unit.backbones import config_of, source_of
from vlp.models.model import count_parameters, meta_model
from vlp.tasks.card import DataFacts, Training, model_card, shown

DATA = DataFacts(
    name="coco", examples=1234, fingerprint="f00", made_by={"command": "coco", "regions": {"weights": "w"}}
)
TRAINING = Training(
    steps=1200,
    recipe={"task": {"name": "pretrain"}, "optimizer": {"learning_rate": 0.001}},
    data=(DATA,),
    judged_on=DataFacts(name="dev", examples=70, fingerprint="ba5"),
    metrics={"mlm_accuracy": 0.51234, "loss/mlm": 2.0},
    versions={"torch": "2.15.0"},
)


def front(card: str) -> dict[str, object]:
    """What the hub reads."""
    values: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return values


def test_a_card_tells_model_recipe_data_and_metrics() -> None:
    config = shipped("lxmert_tiny")
    card = model_card(config, "pretrain", TRAINING, "owner/name")
    assert front(card) == {
        "library_name": "vlp",
        "tags": ["vision-language", "safetensors", "pretrain"],
        "metrics": ["loss/mlm", "mlm_accuracy"],
    }
    assert "\n# owner/name\n" in card
    assert f"{count_parameters(meta_model(config)):,} parameters, trained for pretrain" in card
    assert 'from_pretrained("owner/name")' in card
    assert 'model.encode(regions=["photo.npz"]' in card
    assert "| both | 2 | cross, self, ffn | cross |" in card
    assert "1,200 steps with torch 2.15.0" in card
    assert "learning_rate: 0.001" in card
    assert "| coco | 1,234 | f00 |" in card
    assert "weights: w" in card
    assert "on dev (70 examples, fingerprint ba5)" in card
    assert "| mlm_accuracy | 0.5123 |" in card


def test_a_card_claims_nothing_that_is_not_known() -> None:
    card = model_card(config_of(source_of("convolutions"), beside_regions=True), None, None, "bare")
    assert front(card) == {"library_name": "vlp", "tags": ["vision-language", "safetensors"]}
    assert "trained for" not in card
    for section in ("## Training", "## Data", "## Metrics"):
        assert section not in card
    assert "judged by nothing that is recorded here" in card
    assert 'model.encode(images=["photo.jpg"], regions=["photo.npz"]' in card
    pixels = model_card(config_of(source_of("convolutions")), None, None, "bare")
    assert 'model.encode(images=["photo.jpg"], texts=' in pixels


def test_paths_are_cut_to_their_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards" / "coco").mkdir(parents=True)
    values = {
        "absolute": f"{tmp_path}/gone/coco",
        "beside": "shards/coco",
        "list": [{"path": str(tmp_path / "shards")}],
        "hub": "owner/name",
        "address": "s3://bucket/shards/coco",
        "number": 3,
        "nothing": None,
    }
    assert shown(values) == {
        "absolute": "coco",
        "beside": "coco",
        "list": [{"path": "shards"}],
        "hub": "owner/name",
        "address": "s3://bucket/shards/coco",
        "number": 3,
        "nothing": None,
    }
