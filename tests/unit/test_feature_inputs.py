"""What features are extracted of: shards, folders of images and tables of pairs; what is none of these is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.feature_making import extract, photo_folder, pixel_model, same_rows, samples, shards, trained, vqa
from tests.unit.pictures import encoded, ramps
from vlp import Features, VisionLanguageModel
from vlp.errors import ConfigError, DataError
from vlp.extraction import Inputs, extract_features, open_source
from vlp.features.job import Request
from vlp.features.kinds import parse_what
from vlp.features.preparing import Preparing
from vlp.features.sources import ShardSource


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return trained()


@pytest.fixture(scope="module")
def source(model: VisionLanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    return ShardSource(shards(tmp_path_factory.mktemp("data")), Preparing(model))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photo_folder(tmp_path / "photos")


def test_images_alone_of_shards(model: VisionLanguageModel, source: ShardSource, tmp_path: Path) -> None:
    alone = open_source(Inputs(source.place, texts="none"), model)
    extract(tmp_path / "out", model, alone, what="image.vector")
    found = list(Features(tmp_path / "out"))
    assert [row.key for row in found] == [sample.key for sample in samples(12)]
    assert found[0].id.endswith("/s000")
    extract(tmp_path / "texts", model, source, what="image.vector")
    by_key = {row.key: row.arrays["image.vector"] for row in list(Features(tmp_path / "texts"))}
    for row in found:
        np.testing.assert_allclose(row.arrays["image.vector"], by_key[row.key], atol=1e-5)


def test_a_folder_of_images(photos: Path, tmp_path: Path) -> None:
    model = pixel_model()
    extract(tmp_path / "out", model, open_source(Inputs(str(photos)), model), what="pooled,image.vector")
    found = list(Features(tmp_path / "out"))
    assert [row.id for row in found] == ["deep/two.png", "deep/two.webp", "one.jpg"]
    assert [row.key for row in found] == ["deep/two.png", "deep/two.webp", "one"]
    assert [row.words for row in found] == ["", "", "red circle"]
    encodings = model.encode([photos / row.id for row in found], [row.words for row in found])
    np.testing.assert_allclose([row.arrays["pooled"] for row in found], encodings.pooled, atol=1e-5)


def test_links_to_nothing_are_told(photos: Path, tmp_path: Path) -> None:
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "round.png").symlink_to("round.png")
    (photos / "two.jpg").symlink_to("deep/two.png")
    model = pixel_model()
    done = extract(tmp_path / "out", model, open_source(Inputs(str(photos)), model))
    assert (done.rows, done.quarantined) == (4, 2)
    records = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["gone.jpg", "round.png"]
    assert "No such file" in records[0]["error"]


def test_tables_of_pairs_are_the_same_whatever_their_kind(photos: Path, tmp_path: Path) -> None:
    model = pixel_model()
    pairs = [("one.jpg", 'red, "round"\ncircle'), ("deep/two.png", "blue"), ("one.jpg", "grün")]
    quoted = [(image, '"' + text.replace('"', '""') + '"') for image, text in pairs]
    header = "\ufefffile,title,other\n"
    (photos / "pairs.csv").write_text(header + "".join(f"{i},{t},x\n" for i, t in quoted) + "\n", "utf-8")
    lines = [json.dumps({"file": image, "title": text, "other": 3}) for image, text in pairs]
    (photos / "pairs.jsonl").write_text("\n".join(lines), "utf-8")
    found = []
    for name in ("pairs.csv", "pairs.jsonl"):
        inputs = Inputs(str(photos / name), columns="image=file,text=title")
        done = extract(
            tmp_path / name, model, open_source(inputs, model), what="pooled,itm", part_examples=2, workers=1
        )
        assert (done.rows, done.quarantined) == (3, 0)
        found.append(list(Features(tmp_path / name)))
    same_rows(*found)
    assert [row.words for row in found[0]] == [text for _, text in pairs]
    encodings = model.encode([photos / image for image, _ in pairs], [text for _, text in pairs])
    np.testing.assert_allclose([row.arrays["pooled"] for row in found[0]], encodings.pooled, atol=1e-5)


def test_regions_beside_a_table(tmp_path: Path) -> None:
    model = trained()
    arrays = [sample.regions for sample in samples(3)]
    for number, regions in enumerate(arrays):
        assert regions is not None
        np.savez(tmp_path / f"p{number}.npz", features=regions.features_RD, boxes=regions.boxes_R4)
    (tmp_path / "pairs.csv").write_text("key,text\n" + "".join(f"p{n},red\n" for n in range(4)))
    source = open_source(Inputs(str(tmp_path / "pairs.csv"), regions=tmp_path), model)
    done = extract(tmp_path / "out", model, source, what="image")
    assert (done.rows, done.quarantined) == (3, 1)
    assert [row.id for row in list(Features(tmp_path / "out"))] == ["p0", "p1", "p2"]


WRONG_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"data": "nowhere"}, "--data: nowhere is no directory and no table"),
    ({"data": "{photos}", "texts": "both"}, "--texts: .* holds no shards"),
    ({"data": "{photos}", "columns": "image=x"}, "--columns: .* is a folder of images, which does not take it"),
    ({"data": "{photos}/one.txt"}, "ends in .csv, .tsv, .jsonl"),
    ({"data": "{photos}/bad.csv"}, "has no column 'image' or 'text'"),
    ({"data": "{photos}/bad.csv", "columns": "text=titel"}, "has no column 'titel' .*did you mean 'title'"),
    ({"data": "{photos}/bad.csv", "columns": "txt=title"}, "--columns: 'txt=title' is not right"),
    ({"data": "{photos}/empty.jsonl"}, "has no row"),
    (
        {"data": "{photos}/good.jsonl", "columns": "text=titel"},
        "--columns: .* no column 'titel' .*did you mean 'title'",
    ),
    (
        {"data": "{photos}/good.jsonl"},
        "has no column 'image', without which .* no 'pooled'; name",
    ),
    (
        {"data": "{photos}/texts.csv"},
        "has no column 'image', without which there is no 'pooled'; name its own with --col",
    ),
    ({"data": "{photos}/texts.csv", "images": "{photos}/nowhere"}, "--images: .*nowhere: there is no such folder"),
    ({"data": "{photos}/texts.csv", "images": "{photos}/none"}, "--images: .*none holds nothing"),
    ({"data": "{photos}/texts.csv", "regions": "{photos}"}, "--regions: the model reads photos, not regions"),
    ({"data": "{photos}", "regions": "{photos}"}, "--regions: the model reads photos, not regions"),
    ({"data": "{photos}/none"}, "holds neither shards nor an image"),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG_INPUTS, ids=[sentence[:30] for _, sentence in WRONG_INPUTS])
def test_inputs_that_are_none_are_refused(given: dict[str, Any], sentence: str, photos: Path) -> None:
    (photos / "bad.csv").write_text("file,title\nx,y\n")
    (photos / "empty.jsonl").write_text("\n \n")
    (photos / "none").mkdir()
    (photos / "good.jsonl").write_text('{"title": "red"}\n[]\n{"text": "blue"}\n')
    (photos / "texts.csv").write_text("text\nred\n")
    values = {name: value.replace("{photos}", str(photos)) for name, value in given.items()}
    values |= {name: Path(value) for name, value in values.items() if name in ("images", "regions")}
    with pytest.raises((ConfigError, DataError), match=sentence):
        open_source(Inputs(**values), pixel_model(), parse_what("pooled,text"))


def test_a_model_of_regions_is_given_regions(photos: Path, tmp_path: Path) -> None:
    (photos / "pairs.csv").write_text("image,text\none.jpg,red\n")
    for given, sentence in (
        (
            {"data": str(photos)},
            "--data: .* is a folder of images, and the model reads regions of a detector; give --reg",
        ),
        ({"data": str(photos), "regions": photos}, "--regions: .* holds no npz"),
        ({"data": str(photos), "regions": photos / "nowhere"}, "--regions: .*nowhere: there is no such folder"),
        (
            {"data": str(photos / "pairs.csv")},
            "no column 'regions', .* no 'image'; .*--columns regions=NAME, or give --reg",
        ),
    ):
        with pytest.raises(ConfigError, match=sentence):
            open_source(Inputs(**given), trained(), parse_what("image"))  # type: ignore[arg-type]
    words = open_source(Inputs(str(photos / "pairs.csv")), trained(), parse_what("text.vector"))
    (item,) = words.items(0, 0, 1)
    assert item.fault is not None, "the row has a photo, which the model cannot look at"


def test_a_model_of_photos_is_given_photos(source: ShardSource) -> None:
    """The shards hold regions alone."""
    with pytest.raises(DataError, match="the model reads photos, and these shards hold none"):
        open_source(Inputs(source.place), pixel_model(), parse_what("pooled"))
    assert open_source(Inputs(source.place), pixel_model(), parse_what("text.vector"))


def test_texts_that_shards_lack_are_told_with_the_way_out(source: ShardSource) -> None:
    model = trained(task=vqa())
    with pytest.raises(DataError, match=r"no sample has questions, .* say with --texts which to take"):
        open_source(Inputs(source.place), model)
    assert open_source(Inputs(source.place, texts="captions"), model).groups


def test_columns_that_only_some_rows_have_are_there(photos: Path) -> None:
    (photos / "pairs.jsonl").write_text("[" * 9 + '\n{"title": "red"}\n{"file": "one.jpg"}\n')
    inputs = Inputs(str(photos / "pairs.jsonl"), columns="image=file,text=title")
    assert open_source(inputs, pixel_model(), parse_what("itm")).groups[0].examples == 3


def test_a_file_url_is_a_path(photos: Path, source: ShardSource, model: VisionLanguageModel) -> None:
    (photos / "a b.png").write_bytes(encoded(ramps(), "PNG"))
    for url in (photos.as_uri(), f"file://localhost{photos}", f"file:{photos}"):
        opened = open_source(Inputs(url), pixel_model())
        assert opened.fingerprint == open_source(Inputs(str(photos)), pixel_model()).fingerprint
    assert open_source(Inputs(Path(source.place).as_uri()), model).fingerprint == source.fingerprint


def test_an_extraction_of_nothing_is_no_success(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixel_model().save_pretrained(tmp_path / "model")
    (photos / "pairs.csv").write_text("image,text\nnone.jpg,red\ngone.jpg,blue\n")

    def run(out: str) -> None:
        inputs = Inputs(str(photos / "pairs.csv"))
        extract_features(
            str(tmp_path / "model"), inputs, tmp_path / out, Request(), micro_tokens=99, precision="fp32", workers=0
        )

    with pytest.raises(DataError, match=r"pairs.csv: none of the examples can be used \(0+: image .*none.jpg: No such"):
        run("out")
    (photos / "pairs.csv").write_text("image,text\nnone.jpg,red\none.jpg,blue\n")
    run("some")
    assert "1 example cannot be used and was left out" in capsys.readouterr().out
