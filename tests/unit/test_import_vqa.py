from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.importers.vqa import read_vqa
from data_tools.report import Report
from tests.unit.import_running import records_of, samples_of, skipped, vlp_data
from tests.unit.shard_making import photo, some_regions
from vlp.errors import ConfigError, DataError
from vlp.types import Question


def _question(id: int, image: Any, text: str = "What is it?") -> dict[str, Any]:
    return {"image_id": image, "question": text, "question_id": id}


def _annotation(id: int, image: Any, *answers: str) -> dict[str, Any]:
    return {
        "question_type": "what is",
        "multiple_choice_answer": answers[0] if answers else "",
        "answers": [
            {"answer": answer, "answer_confidence": "maybe", "answer_id": i} for i, answer in enumerate(answers, 1)
        ],
        "image_id": image,
        "answer_type": "other",
        "question_id": id,
    }


def _files(folder: Path, questions: list[Any], annotations: list[Any], subset: str = "train2014") -> tuple[Path, Path]:
    about = {"info": {"year": 2017}, "license": {}, "data_subtype": subset, "data_type": "mscoco"}
    (folder / "q.json").write_text(json.dumps({**about, "task_type": "Open-Ended", "questions": questions}))
    (folder / "a.json").write_text(json.dumps({**about, "annotations": annotations}))
    return folder / "q.json", folder / "a.json"


_TYPES = {"question_type": "what is", "answer_type": "other"}
_TEN = ("dog", *["cat"] * 8, "")


def test_questions_with_ten_answers_by_image(tmp_path: Path) -> None:
    asked = [_question(90, 9), _question(250, 25, "Ở đâu?"), _question(91, 9, "Why?")]
    told = [_annotation(91, 9, "b"), _annotation(90, 9, *_TEN), _annotation(250, 25, "chó")]
    report = Report({})
    first, second = read_vqa(*_files(tmp_path, asked, told), None, None, report)
    assert (first.file, first.metadata) == ("COCO_train2014_000000000009.jpg", {"image_id": 9})
    assert first.questions == (
        Question("What is it?", _TEN, "90", _TYPES),
        Question("Why?", ("b",), "91", _TYPES),
    )
    assert (second.file, second.questions[0].text) == ("COCO_train2014_000000000025.jpg", "Ở đâu?")
    assert (report.read, report.skipped) == ({"annotations": 3, "questions": 3, "images": 2}, {})


def test_a_test_split_has_no_answers(tmp_path: Path) -> None:
    questions, _ = _files(tmp_path, [_question(1, 9)], [], subset="test-dev2015")
    (record,) = read_vqa(questions, None, None, None, Report({}))
    assert record.file == "COCO_test2015_000000000009.jpg"  # test-dev asks about images of test2015
    assert record.questions == (Question("What is it?", (), "1"),)


@pytest.mark.parametrize(
    ("there", "pattern", "file"),
    [
        ("COCO_train2014_000000000009.jpg", None, "COCO_train2014_000000000009.jpg"),
        ("train2014/COCO_train2014_000000000009.jpg", None, "train2014/COCO_train2014_000000000009.jpg"),
        ("000000000009.jpg", None, "000000000009.jpg"),
        ("abstract_v002_train2014_000000000009.png", None, "abstract_v002_train2014_000000000009.png"),
        ("nothing.jpg", None, "COCO_train2014_000000000009.jpg"),
        ("000000000009.jpg", "{subset}_{image_id}.png", "train2014_9.png"),
    ],
)
def test_the_name_of_an_image(tmp_path: Path, there: str, pattern: str | None, file: str) -> None:
    path = tmp_path / "images" / there
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    questions, _ = _files(tmp_path, [_question(n, image) for n, image in enumerate([8, 9, 9])], [])
    records = read_vqa(questions, None, tmp_path / "images", pattern, Report({}))
    assert records[1].file == file


def test_ids_that_are_texts_keep_their_zeros(tmp_path: Path) -> None:
    questions, _ = _files(tmp_path, [_question(1, "0054a"), _question(2, "0054"), _question(3, "54")], [])
    records = read_vqa(questions, None, None, "{image_id}.jpg", Report({}))
    assert [record.file for record in records] == ["0054a.jpg", "0054.jpg", "54.jpg"]
    for pattern in ("{image_id:012d}.jpg", "{id}.jpg", "{image_id", "{}", "{image_id.real.x}"):
        with pytest.raises(ConfigError, match=r"--image-name .* cannot be filled in for image_id '0054a'; write"):
            read_vqa(questions, None, None, pattern, Report({}))


def test_what_is_wrong_is_skipped(tmp_path: Path) -> None:
    asked = [
        _question(1, 9),
        _question(1, 9),
        _question(3, 9),
        _question(4, 9),
        {"question_id": 5, "image_id": 9},
        "no question",
        {**_question(6, True)},
        _question(7, 9, "half \ud83d"),
        _question(8, 9),
    ]
    told = [
        *(_annotation(id, 9, "a") for id in (1, 1)),
        _annotation(4, 10, "b"),
        _annotation(77, 9, "c"),
        {"question_id": 3},
        {**_annotation(8, 9, "d"), "answers": ["d", {"answer": None}, {"answer": "e"}]},
    ]
    report = Report({})
    (record,) = read_vqa(*_files(tmp_path, asked, told), None, None, report)
    assert [(question.id, question.answers) for question in record.questions] == [("1", ("a",)), ("8", ("d", "e"))]
    assert report.read["questions"] == len(asked)
    assert skipped(report) == {
        "annotation without 'question_id' or 'answers'": (1, ["annotations[4]"]),
        "annotation stands twice": (1, ["question_id 1"]),
        "answer without a text": (1, ["question_id 8"]),
        "question id stands twice": (1, ["1"]),
        "question without an annotation of the same image": (2, ["question_id 3", "question_id 4"]),
        "question without 'image_id', 'question_id' or 'question'": (
            4,
            ["questions[4]", "questions[5]", "questions[6]", "questions[7]"],
        ),
        "annotation without a question": (1, ["question_id 77"]),
    }


def test_other_files_are_refused(tmp_path: Path) -> None:
    questions, annotations = _files(tmp_path, [_question(1, 9)], [_annotation(2, 9, "a")])
    with pytest.raises(DataError, match=r"a\.json: has no annotation of a question of .*q\.json; give those of"):
        read_vqa(questions, annotations, None, None, Report({}))
    with pytest.raises(DataError, match=r"a\.json: has no list 'questions'; give VQA's \*_questions\.json"):
        read_vqa(annotations, questions, None, None, Report({}))
    with pytest.raises(DataError, match=r"q\.json: has no list 'annotations'; give VQA's \*_annotations\.json"):
        read_vqa(questions, questions, None, None, Report({}))


def test_regions_do_without_photos(tmp_path: Path) -> None:
    questions, annotations = _files(tmp_path, [_question(90, 9)], [_annotation(90, 9, "b")])
    (tmp_path / "regions").mkdir()
    seen = some_regions(3)
    np.savez(tmp_path / "regions" / "coco_9.npz", features=seen.features_RD, norm_bb=seen.boxes_R4)
    words = ("vqa", "--questions", questions, "--annotations", annotations, "--regions", tmp_path / "regions")
    assert vlp_data(*words, "--image-name", "coco_{image_id}.npz", "--out", tmp_path / "out") == 0
    (sample,) = samples_of(tmp_path / "out")
    assert sample.regions is not None
    assert (sample.key, sample.image, len(sample.regions)) == ("coco_9", None, 3)


def test_the_command_and_what_stands_in_the_shards(tmp_path: Path) -> None:
    asked, told = [_question(90, 9), _question(91, 9)], [_annotation(90, 9, *_TEN), _annotation(91, 9, "b")]
    questions, annotations = _files(tmp_path, asked, told)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000000009.jpg").write_bytes(photo())
    words = ("vqa", "--questions", questions, "--images", tmp_path / "images", "--out")
    assert vlp_data(*words, tmp_path / "out", "--annotations", annotations) == 0
    (sample,) = samples_of(tmp_path / "out")
    assert sample.questions[0] == Question("What is it?", _TEN, "90", _TYPES)
    (record,) = records_of(tmp_path / "out")
    assert record["questions"][1] == {"question": "What is it?", "answers": ["b"], "question_id": "91", "types": _TYPES}
    assert (record["id"], record["image_id"]) == ("000000000009", 9)
    assert vlp_data(*words, tmp_path / "test") == 0
    assert "types" not in records_of(tmp_path / "test")[0]["questions"][0]
    assert samples_of(tmp_path / "test")[0].questions[1] == Question("What is it?", (), "91")
    assert vlp_data(*words, tmp_path / "no", "--annotations", tmp_path / "nowhere.json") == 2


def test_answers_to_other_questions_make_no_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of another split, by the command: a sentence that names both files, and nothing to train on. Where some
    match, the others are counted in the report."""
    questions, annotations = _files(tmp_path, [_question(1, 9), _question(2, 9)], [_annotation(3, 9, "a")])
    given = ("--questions", questions, "--annotations", annotations, "--out", tmp_path / "out")
    assert vlp_data("vqa", *given) == 1
    said = capsys.readouterr()
    assert re.search(r"a\.json: has no annotation of a question of .*q\.json; give those of the same split", said.err)
    assert "Traceback" not in said.err
    assert not list(tmp_path.rglob("*.tar"))
    questions, annotations = _files(tmp_path, [_question(1, 9), _question(2, 9)], [_annotation(2, 9, "a")])
    report = Report({})
    (record,) = read_vqa(questions, annotations, None, None, report)
    assert [question.id for question in record.questions] == ["2"]
    assert skipped(report)["question without an annotation of the same image"] == (1, ["question_id 1"])
