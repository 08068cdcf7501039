from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.importers.karpathy import read_karpathy
from data_tools.report import Report
from tests.unit.import_running import samples_of, skipped, vlp_data
from tests.unit.shard_making import photo
from vlp.errors import DataError


def _image(number: int, split: str, *captions: str, folder: str = "", **more: Any) -> dict[str, Any]:
    """As the published files have it; those of Flickr have no `filepath` and no `cocoid`."""
    sentences = [
        {"tokens": caption.lower().split(), "raw": caption, "imgid": number, "sentid": 10 * number + i}
        for i, caption in enumerate(captions)
    ]
    where: dict[str, Any] = {"filepath": folder, "cocoid": 500 + number} if folder else {}
    return {
        "sentids": [sentence["sentid"] for sentence in sentences],
        "imgid": number,
        "sentences": sentences,
        "split": split,
        "filename": f"{number}.jpg",
        **where,
        **more,
    }


def _file(path: Path, *images: Any) -> Path:
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return path


def test_splits_are_taken_as_named(tmp_path: Path) -> None:
    images = [
        _image(0, "train", "One.", "Two "),
        _image(1, "restval", "Chó"),
        _image(2, "val", "x"),
        _image(3, "train", "y"),
    ]
    path = _file(tmp_path / "dataset_flickr30k.json", *images)
    report = Report({})
    records = read_karpathy(path, ["train", "restval"], None, report)
    assert [(record.file, record.captions) for record in records] == [
        ("0.jpg", ("One.", "Two ")),
        ("1.jpg", ("Chó",)),
        ("3.jpg", ("y",)),
    ]
    assert records[1].metadata == {"image_id": 1, "split": "restval"}
    assert (report.read, report.skipped) == ({"images": 3, "captions": 4}, {})
    assert len(read_karpathy(path, [], None, Report({}))) == 4
    with pytest.raises(DataError, match=r"split 'test'; its splits are train \(2\), restval \(1\), val \(1\)"):
        read_karpathy(path, ["train", "test"], None, Report({}))


def test_coco_images_lie_in_their_folders_or_side_by_side(tmp_path: Path) -> None:
    images = [_image(0, "train", "a", folder="train2014"), _image(1, "val", "b", folder="val2014")]
    path = _file(tmp_path / "dataset_coco.json", *images)
    (tmp_path / "images" / "train2014").mkdir(parents=True)

    def files(images: Path | None) -> list[str]:
        return [record.file for record in read_karpathy(path, [], images, Report({}))]

    assert files(tmp_path / "images") == ["train2014/0.jpg", "1.jpg"]
    assert files(None) == ["train2014/0.jpg", "val2014/1.jpg"]
    assert read_karpathy(path, [], None, Report({}))[1].metadata == {"image_id": 501, "split": "val"}


def test_what_is_wrong_is_skipped(tmp_path: Path) -> None:
    good = _image(0, "train", "a")
    half = _image(1, "train", "b", "c")
    half["sentences"][0] = {"tokens": ["b"]}
    report = Report({})
    path = _file(tmp_path / "x.json", good, good, half, {"split": "train"}, 7, _image(2, "train", sentences=None))
    assert [record.captions for record in read_karpathy(path, [], None, report)] == [("a",), ("c",)]
    assert skipped(report) == {
        "image stands twice": (1, ["0.jpg"]),
        "sentence without 'raw'": (1, ["1.jpg"]),
        "image without 'filename' or 'sentences'": (3, ["images[3]", "images[4]", "images[5]"]),
    }


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path / "x.json", _image(0, "train", "a "), _image(1, "restval", "b"), _image(2, "val", "c"))
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(photo(number))
    words = ("karpathy", "--captions", path, "--images", tmp_path / "images", "--out", tmp_path / "out", "--split")
    assert vlp_data(*words, "train, restval") == 0
    assert [(sample.key, sample.captions) for sample in samples_of(tmp_path / "out")] == [("0", ("a",)), ("1", ("b",))]
    path.write_text('{"annotations": []}')
    assert vlp_data(*words, "train", "--overwrite") == 1
    assert "x.json: has no list 'images'; give Karpathy's dataset_coco.json" in capsys.readouterr().err
    assert len(samples_of(tmp_path / "out")) == 2
