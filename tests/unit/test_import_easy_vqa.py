from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_tools.importers.easy_vqa import read_easy_vqa
from data_tools.report import Report
from tests.unit.import_running import samples_of, saved_report, skipped, vlp_data
from vlp.errors import DataError
from vlp.types import Question


def _file(folder: Path, questions: Any) -> Path:
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder / "questions.json"


def test_questions_by_image(tmp_path: Path) -> None:
    report = Report({})
    records = read_easy_vqa(_file(tmp_path, [["what?", "blue", 7], ["is it?", "no", 0], ["why?", "yes", 7]]), report)
    assert [(record.file, record.metadata) for record in records] == [
        ("7.png", {"image_id": 7}),
        ("0.png", {"image_id": 0}),
    ]
    assert records[0].questions == (Question("what?", ("blue",), "0"), Question("why?", ("yes",), "2"))
    assert report.read == {"questions": 3, "images": 2}


def test_what_is_wrong_is_skipped(tmp_path: Path) -> None:
    report = Report({})
    entries = [["a?", "b", 1], ["a?", "b"], ["a?", 3, 1], ["a?", "b", "1"], {"q": 1}, ["\ud83d", "b", 1]]
    (record,) = read_easy_vqa(_file(tmp_path, entries), report)
    assert len(record.questions) == 1
    assert skipped(report) == {
        "entry that is not [question, answer, image number]": (5, ["[1]", "[2]", "[3]", "[4]", "[5]"]),
    }


@pytest.mark.parametrize("content", [[], [{"question": "a?"}]])
def test_other_files_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DataError, match=r"questions\.json: has no entry \[question, answer, image number\]; give easy"):
        read_easy_vqa(_file(tmp_path, content), Report({}))


def test_easy_vqa(tmp_path: Path, test_data: Path) -> None:
    source, out, report = test_data / "easy_vqa", tmp_path / "out", Report({})
    records = read_easy_vqa(source / "questions.json", report)
    assert (report.read, report.skipped) == ({"questions": 38575, "images": 4000}, {})
    answers = Counter(question.answers[0] for record in records for question in record.questions)
    assert (len(answers), answers["yes"], answers["no"]) == (13, 14229, 14178)
    words = ("--questions", source / "questions.json", "--images", source / "images", "--limit", 300, "--out", out)
    assert vlp_data("easy-vqa", *words) == 0
    assert (saved_report(out)["skipped"], saved_report(out)["notes"]) == ({}, [])
    samples = samples_of(out)
    assert [sample.key for sample in samples] == [str(number) for number in range(300)]
    assert [sample.questions for sample in samples] == [record.questions for record in records[:300]]
    assert samples[7].image == (source / "images" / "7.png").read_bytes()
