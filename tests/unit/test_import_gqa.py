from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.importers.gqa import read_gqa
from data_tools.report import Report
from tests.unit.import_running import samples_of, skipped, vlp_data
from tests.unit.shard_making import photo
from vlp.errors import DataError
from vlp.types import Question

_TYPES = {"detailed": "relS", "semantic": "rel", "structural": "query"}


def _question(image: str, question: str, answer: str | None = None, **more: Any) -> dict[str, Any]:
    """As the published files have it; test files have the first three and `isBalanced` alone."""
    told = {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "dog (1)"}],
        "entailed": [],
        "equivalent": ["1"],
        "answer": answer,
        "fullAnswer": f"It is {answer}.",
        "types": _TYPES,
        "groups": {"global": None, "local": "10-x"},
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "semanticStr": "select: dog (1)",
    }
    return {"imageId": image, "question": question, "isBalanced": True, **(told if answer else {}), **more}


def _file(path: Path, questions: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(questions))
    return path


def test_questions_of_several_files_by_image(tmp_path: Path) -> None:
    first = _file(tmp_path / "0.json", {"01": _question("n16", "Who?", "boy"), "02": _question("25", "Where?", "left")})
    second = _file(tmp_path / "1.json", {"03": _question("n16", "Ai?"), "01": _question("n16", "Who?", "boy")})
    report = Report({})
    records = read_gqa([first, second], report)
    assert [(record.file, record.metadata) for record in records] == [
        ("n16.jpg", {"image_id": "n16"}),
        ("25.jpg", {"image_id": "25"}),
    ]
    assert records[0].questions == (Question("Who?", ("boy",), "01", _TYPES), Question("Ai?", (), "03"))
    assert report.read == {"questions": 4, "images": 2}
    assert skipped(report) == {"question id stands twice": (1, ["01"])}


def test_what_is_wrong_is_skipped(tmp_path: Path) -> None:
    questions = {
        "1": _question("5", "Who?", "boy", types={"structural": 3, "semantic": "rel"}),
        "2": {"question": "Who?"},
        "3": None,
        "5": _question("5", "So?", types=None),
    }
    report = Report({})
    (record,) = read_gqa([_file(tmp_path / "x.json", questions)], report)
    assert [dict(question.types) for question in record.questions] == [{"semantic": "rel"}, {}]
    assert skipped(report) == {
        "question without 'imageId' or 'question'": (2, ["x.json: 2", "x.json: 3"]),
    }


@pytest.mark.parametrize("content", [{}, {"questions": [{"image_id": 1, "question": "?", "question_id": 1}]}])
def test_other_files_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DataError, match=r"x\.json: has no question with 'imageId' and 'question'; give GQA's"):
        read_gqa([_file(tmp_path / "x.json", content)], Report({}))


def test_the_command_takes_files_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "5.jpg").write_bytes(photo())
    for number in range(2):
        _file(tmp_path / "all" / f"train_all_questions_{number}.json", {str(number): _question("5", "Who?", "boy")})
    one = _file(tmp_path / "one.json", {"2": _question("5", "Why?", "so")})
    words = ("gqa", "--images", tmp_path / "images", "--out", tmp_path / "out", "--questions")
    assert vlp_data(*words, tmp_path / "all", "--questions", one) == 0
    (sample,) = samples_of(tmp_path / "out")
    assert [question.id for question in sample.questions] == ["0", "1", "2"]
    assert sample.questions[2].types == _TYPES
    assert vlp_data(*words, tmp_path / "images", "--overwrite") == 2
    assert "holds no *.json file" in capsys.readouterr().err
