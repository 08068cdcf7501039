from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.importers.vg import read_vg
from data_tools.importing.command import Record
from data_tools.report import Report
from tests.unit.import_running import records_of, samples_of, skipped, vlp_data
from tests.unit.shard_making import photo
from vlp.errors import DataError
from vlp.types import Question


def _region(number: int, phrase: Any, x: int = 0, y: int = 0, width: int = 10, height: int = 10) -> dict[str, Any]:
    return {
        "region_id": number,
        "width": width,
        "height": height,
        "image_id": 1,
        "phrase": phrase,
        "y": y,
        "x": x,
    }


def _pair(number: int, question: Any, answer: Any = "Shade.") -> dict[str, Any]:
    return {
        "a_objects": [],
        "question": question,
        "image_id": 1,
        "qa_id": number,
        "answer": answer,
        "q_objects": [],
    }


def _about(number: int, width: Any = 100, height: int = 50, coco_id: int | None = None) -> dict[str, Any]:
    url = f"https://example.org/VG_100K_2/{number}.jpg"
    return {
        "width": width,
        "url": url,
        "height": height,
        "image_id": number,
        "coco_id": coco_id,
        "flickr_id": None,
    }


class _Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, content: Any) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(content))
        return path


@pytest.fixture
def files(tmp_path: Path) -> _Files:
    return _Files(tmp_path)


def _read(*sources: Path | None, images: Path | None = None) -> tuple[list[Record], Report]:
    report = Report({})
    descriptions, qa, image_data = (*sources, None, None, None)[:3]
    return list(read_vg(descriptions, qa, image_data, images, report)), report


def test_phrases_are_captions_and_questions_join_them(files: _Files) -> None:
    phrases = files(
        "d", [{"regions": [_region(1, "the clock"), _region(2, "a  chó")], "id": 1}, {"regions": [], "id": 2}]
    )
    pairs = files(
        "q", [{"id": 3, "qas": [_pair(9, "Who?")]}, {"id": 1, "qas": [_pair(7, "Why?"), _pair(8, "So?", "")]}]
    )
    records, report = _read(phrases, pairs)
    assert [(record.file, record.captions, record.metadata) for record in records] == [
        ("1.jpg", ("the clock", "a  chó"), {"image_id": 1}),
        ("2.jpg", (), {"image_id": 2}),
        ("3.jpg", (), {"image_id": 3}),
    ]
    assert records[0].questions == (Question("Why?", ("Shade.",), "7"), Question("So?", ("",), "8"))
    assert records[2].questions == (Question("Who?", ("Shade.",), "9"),)
    assert report.read == {"questions": 3, "images of q.json": 2, "captions": 2, "images of d.json": 2}
    assert [record.file for record in _read(None, pairs)[0]] == ["3.jpg", "1.jpg"]


def test_boxes_are_kept_as_shares_where_the_size_is_known(files: _Files) -> None:
    regions = [
        _region(1, "one", 50, 10, 25, 20),
        _region(2, " "),
        _region(3, "three", -5, 40, 200, 20),
        _region(4, "four", width=0),
        {"phrase": "five"},
    ]
    phrases = files("d", [{"regions": regions, "id": 1}, {"regions": [_region(6, "six")], "id": 2}])
    about = files("i", [_about(1, coco_id=77), _about(3), _about(4, None), {"id": 5}])
    records, report = _read(phrases, None, about)
    assert records[0].captions == ("one", "three", "four", "five")
    boxes = [[0.5, 0.2, 0.75, 0.6], [0.0, 0.8, 1.0, 1.0], None, None]
    assert records[0].metadata == {"image_id": 1, "coco_id": 77, "caption_boxes": boxes}
    assert records[1].metadata == {"image_id": 2}
    assert skipped(report) == {
        "empty caption": (1, ["image 1"]),
        "image data without 'image_id', 'width' or 'height'": (2, ["[2]", "[3]"]),
    }


def test_images_are_found_in_both_folders(files: _Files, tmp_path: Path) -> None:
    phrases = files("d", [{"regions": [_region(1, "x")], "id": number} for number in range(4)])
    for file in ("VG_100K/0.jpg", "VG_100K_2/1.jpg", "2.jpg"):
        (tmp_path / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / file).write_bytes(b"")
    records, _ = _read(phrases, images=tmp_path / "images")
    assert [record.file for record in records] == ["VG_100K/0.jpg", "VG_100K_2/1.jpg", "2.jpg", "3.jpg"]


def test_what_is_wrong_is_skipped(files: _Files) -> None:
    regions = [_region(1, "x"), {}, 7, _region(2, None), _region(3, "half \ud83d")]
    phrases = files("d", [{"regions": regions, "id": 1}, {"regions": [], "id": 1}, {"id": 3}, {"regions": []}, 7])
    pairs = files("q", [{"id": 1, "qas": [_pair(1, "a"), _pair(1, "b"), _pair(3, "c", None), None]}])
    records, report = _read(phrases, pairs)
    assert [(record.captions, [question.text for question in record.questions]) for record in records] == [
        (("x",), ["a"])
    ]
    assert skipped(report) == {
        "question id stands twice": (1, ["1"]),
        "question without 'qa_id', 'question' or 'answer'": (2, ["image 1", "image 1"]),
        "region without a 'phrase'": (4, ["image 1"] * 4),
        "image stands twice": (1, ["id 1"]),
        "image without 'id' or 'regions'": (3, ["d.json [2]", "d.json [3]", "d.json [4]"]),
    }


def test_other_files_are_refused(files: _Files) -> None:
    phrases, pairs = files("d", [{"regions": [], "id": 1}]), files("q", [{"qas": [], "id": 1}])
    with pytest.raises(
        DataError, match=r"q\.json: has no image with 'id' and 'regions'; give Visual Genome's region_d"
    ):
        _read(pairs)
    with pytest.raises(
        DataError, match=r"d\.json: has no image with 'id' and 'qas'; give Visual Genome's question_ans"
    ):
        _read(None, phrases)
    with pytest.raises(DataError, match=r"d\.json: has no entry with 'image_id', 'width' and 'height'; give Visual"):
        _read(phrases, None, phrases)
    with pytest.raises(DataError, match="is not one JSON list"):
        _read(files("x", {}))


def test_the_command(files: _Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phrases = files("d", [{"regions": [_region(1, " the clock "), _region(2, "")], "id": 1}])
    pairs, about = files("q", [{"id": 1, "qas": [_pair(7, "Why?")]}]), files("i", [_about(1)])
    (tmp_path / "images" / "VG_100K").mkdir(parents=True)
    (tmp_path / "images" / "VG_100K" / "1.jpg").write_bytes(photo())
    words = ("vg", "--images", tmp_path / "images", "--out", tmp_path / "out")
    assert vlp_data(*words, "--descriptions", phrases, "--qa", pairs, "--image-data", about) == 0
    (sample,) = samples_of(tmp_path / "out")
    assert (sample.captions, sample.questions) == (("the clock",), (Question("Why?", ("Shade.",), "7"),))
    (record,) = records_of(tmp_path / "out")
    assert (record["id"], record["caption_boxes"]) == ("1", [[0.0, 0.0, 0.1, 0.2]])
    assert vlp_data(*words) == 2
    assert "give --descriptions, --qa or both" in capsys.readouterr().err
