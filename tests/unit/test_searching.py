"""`vlp index` and `vlp search` as they are typed: what is printed, and where things are found when they have moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.feature_making import extract, pixel_model
from tests.unit.pictures import ramps
from vlp.errors import ConfigError, DataError
from vlp.extraction import Inputs, open_source
from vlp.searching import build, search

pytest.importorskip("faiss", reason="the extra `search` is not installed")

USUAL: dict[str, Any] = {
    **{"image": None, "regions": None, "model": None, "data": None, "side": None},
    **{"k": 3, "rerank": 0, "breadth": 1.0},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in: a model, a table of three captions a photo, and their index, made by relative paths."""
    folder = tmp_path / "here"
    (folder / "shop" / "photos").mkdir(parents=True)
    monkeypatch.chdir(folder)
    model = pixel_model()
    model.save_pretrained("models/finds")
    lines = []
    for number in range(6):
        ramps(20 + 9 * number, 60 - 7 * number).save(Path("shop", "photos", f"{number}.png"))
        lines += [f"sku{number}-{text},{number}.png,{text} of {number % 2}" for text in ("red", "blue", "two")]
    Path("shop/pairs.csv").write_text("\n".join(["sku,file,title", *lines]))
    inputs = Inputs("shop/pairs.csv", columns="key=sku,image=file,text=title", images=Path("shop/photos"))
    request = {"what": "text.vector,image.vector", "format": "webdataset", "model_name": "models/finds"}
    extract(Path("features"), model, open_source(inputs, model), **request)
    build(Path("features"), Path("indexes/shop"), "exact")
    return folder


def asked(capsys: pytest.CaptureFixture[str], text: str | None = "red circle", **more: Any) -> list[str]:
    capsys.readouterr()
    search(more.pop("index", Path("indexes/shop")), text, **{**USUAL, **more})
    return capsys.readouterr().out.splitlines()


def test_a_line_names_photo_and_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = asked(capsys, k=10)
    assert len(lines) == 6, "each photo once"
    assert {line.split()[2] for line in lines} == {f"shop/photos/{number}.png" for number in range(6)}
    first = lines[0].split()
    number = Path(first[2]).stem
    assert lines[0] == f"  1  {first[1]:>8}  shop/photos/{number}.png  red of {int(number) % 2}  sku{number}-red"
    lines = asked(capsys, None, image=Path("shop/photos/3.png"), k=10)
    assert len(lines) == 6, "each text once: three words of two kinds of photos"
    assert all(" of " in line and "shop/photos/" in line for line in lines)
    records = [json.loads(line) for line in asked(capsys, as_json=True)]
    assert [record["rank"] for record in records] == [1, 2, 3]
    assert [record["score"] for record in records] == sorted((record["score"] for record in records), reverse=True)
    assert records[0] | {"score": 0} == {
        **{"rank": 1, "score": 0, "image": f"shop/photos/{number}.png", "id": f"sku{number}-red"},
        "text": f"red of {int(number) % 2}",
    }


def test_the_nearest_are_ranked_anew_and_the_best_of_them_shown(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nearest = [line.split()[2] for line in asked(capsys, k=6)]
    assert {line.split()[2] for line in asked(capsys, k=4, rerank=2)} == set(nearest[:2])
    ranked = [line.split()[2] for line in asked(capsys, k=6, rerank=6)]
    assert [line.split()[2] for line in asked(capsys, k=2, rerank=6)] == ranked[:2]
    assert sorted(ranked) == sorted(nearest)


def test_an_index_is_asked_from_elsewhere_and_moved(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [line.split()[1] for line in asked(capsys, rerank=4)]
    monkeypatch.chdir(place / "shop")
    lines = asked(capsys, index=Path("../indexes/shop"), rerank=4)
    assert [line.split()[1] for line in lines] == wanted
    assert lines[0].split()[2].startswith("photos/"), "a path is called as it is from here"
    monkeypatch.chdir(place.parent)
    shutil.copytree(place / "indexes", "alone")
    assert [line.split()[1] for line in asked(capsys, index=Path("alone/shop"), rerank=4)] == wanted
    place.rename("there")
    lines = asked(capsys, index=Path("there/indexes/shop"), rerank=4)
    assert [line.split()[1] for line in lines] == wanted, "with its model and its photos"
    assert lines[0].split()[2].startswith("there/shop/photos/")
    with pytest.raises(ConfigError, match=r"^--model: alone/shop was made by the model '.*; say with --model"):
        asked(capsys, index=Path("alone/shop"))
    given = {"index": Path("alone/shop"), "model": "there/models/finds", "rerank": 4}
    with pytest.raises(ConfigError, match=r"^--data: alone/shop was made of '.*', which .*; say with --data where"):
        asked(capsys, **given)
    assert asked(capsys, **given, data="there/shop/pairs.csv") == lines


def test_photos_that_are_gone_are_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for photo in place.rglob("*.png"):
        photo.rename(photo.with_suffix(".gone"))
    with pytest.raises(DataError, match=r"--rerank: none of the 4 nearest .* \(of the first: .*png"):
        asked(capsys, rerank=4)
    assert len(asked(capsys)) == 3


def test_a_table_that_changed_matters_to_the_second_look_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = asked(capsys)
    with Path("shop/pairs.csv").open("a") as file:
        file.write("\nsku9,0.png,new")
    assert asked(capsys) == wanted
    with pytest.raises(ConfigError, match=r"--data: .* is not what .* was made of, or has changed since"):
        asked(capsys, rerank=2)
