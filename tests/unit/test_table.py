from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_tools.importers.table import Columns, read_csv, read_jsonl
from data_tools.report import Report
from tests.unit.import_running import samples_of, saved_report, skipped, vlp_data
from tests.unit.shard_making import photo
from vlp.errors import DataError
from vlp.types import Question

CAPTIONS = Columns("image", ("caption",))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (tmp_path / "images" / name).write_bytes(photo(len(name)))
    return tmp_path / "images"


def test_csv_groups_rows_by_image(tmp_path: Path) -> None:
    rows = ["id, image ,caption", '1,b.jpg,"one, with a comma"', "", '2,./a.jpg,"two\nlines ""quoted"""', "3,b.jpg,một"]
    (tmp_path / "x.csv").write_bytes(("\ufeff" + "\r\n".join(rows)).encode())
    report = Report({})
    records = read_csv(tmp_path / "x.csv", CAPTIONS, ",", report)
    assert [(record.file, record.captions) for record in records] == [
        ("b.jpg", ("one, with a comma", "một")),
        ("a.jpg", ('two\nlines "quoted"',)),
    ]
    assert report.read == {"rows": 3, "captions": 3, "images": 2}
    assert not report.skipped


def test_csv_tells_bad_rows_by_line(tmp_path: Path) -> None:
    lines = [
        "image|comment_number|comment",
        "a.jpg|0|good",
        "a.jpg|1",
        '"b.jpg"|"a\nb"|two lines',
        " |3|no image",
        "c.jpg||",
    ]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    report = Report({})
    records = read_csv(tmp_path / "x.csv", Columns("image", ("comment",)), "|", report)
    assert [(record.file, record.captions) for record in records] == [
        ("a.jpg", ("good",)),
        ("b.jpg", ("two lines",)),
        ("c.jpg", ()),
    ]
    assert skipped(report) == {
        "row that has not the header's 3 cells": (1, ["line 3"]),
        "row without a proper 'image'": (1, ["line 6"]),
    }


def test_csv_with_questions(tmp_path: Path) -> None:
    lines = ["photo;q;a1;a2;n", "a.jpg;what?;yes, sure;no;7", "a.jpg;who?;;;8", "a.jpg;;x;;"]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    columns = Columns("photo", (), "q", ("a1", "a2"), "n", ",")
    (record,) = read_csv(tmp_path / "x.csv", columns, ";", Report({}))
    assert record.questions == (Question("what?", ("yes", "sure", "no"), "7"), Question("who?", (), "8"))
    assert record.captions == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"image,captions\na.jpg,x\n",
            r"x\.csv: its first line names no column 'caption' \(did you mean 'captions'\?\)",
        ),
        (b"", r"x\.csv: its first line names no column 'image'"),
        (b"image,caption\na.jpg,\xff\n", r"x\.csv line 2: is not UTF-8"),
        (
            b'image,caption\na.jpg,"' + b"x\n" * 100_000,
            r"x\.csv line \d+: field larger than .*; mend its quotes or name",
        ),
    ],
)
def test_a_csv_that_is_none_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_csv(tmp_path / "x.csv", CAPTIONS, ",", Report({}))


def test_jsonl_takes_texts_and_lists(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "caption": "one", "questions": [{"question": "?", "answers": ["x", 2], "question_id": 5}]},
        {"image": "b.jpg", "caption": ["two", "three"], "questions": None},
        {"image": "a.jpg", "caption": "four\u2028more", "questions": "plain?", "answer": ["yes"], "other": {}},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    columns = Columns("image", ("caption",), "questions", ("answer",))
    first, second = read_jsonl(tmp_path / "x.jsonl", columns, Report({}))
    assert (first.file, first.captions) == ("a.jpg", ("one", "four\u2028more"))
    assert first.questions == (Question("?", ("x", "2"), "5"), Question("plain?", ("yes",)))
    assert (second.file, second.captions, second.questions) == ("b.jpg", ("two", "three"), ())


def test_jsonl_tells_bad_lines_by_place(tmp_path: Path) -> None:
    lines = [
        '{"image": "a.jpg", "caption": "good"}',
        '{"image": "a.jpg", "caption" "x"}',
        "[]",
        '{"caption": "x"}',
        '{"image": "a.jpg", "caption": {"en": "x"}}',
        '{"image": "a.jpg", "caption": true}',
        '{"image": "a.jpg", "q": [{"answers": []}]}',
        "[" * 100_000,
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    report = Report({})
    (record,) = read_jsonl(tmp_path / "x.jsonl", Columns("image", ("caption",), "q"), report)
    assert record.captions == ("good",)
    assert skipped(report) == {
        "line that is not JSON": (1, ["line 2 column 30"]),
        "line that is not a JSON object": (2, ["line 3", "line 8"]),
        "row without a proper 'image'": (1, ["line 4"]),
        "row without a proper 'caption'": (2, ["line 5", "line 6"]),
        "row without a proper 'q'": (1, ["line 7"]),
    }


def test_the_commands(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.csv").write_text("image\tcaption\na.jpg\tone\nsub/c.jpg\ttwo\n")
    (tmp_path / "x.jsonl").write_text('{"file": "b.jpg", "q": "what?", "a": "x"}\n')
    words = ("--file", tmp_path / "x.csv", "--images", images)
    assert vlp_data("csv", *words, "--delimiter", "tab", "--out", tmp_path / "csv") == 0
    assert [(sample.key, sample.captions) for sample in samples_of(tmp_path / "csv")] == [
        ("a", ("one",)),
        ("sub_c", ("two",)),
    ]
    words = ("--file", tmp_path / "x.jsonl", "--images", images, "--image", "file", "--question", "q", "--answer", "a")
    assert vlp_data("jsonl", *words, "--out", tmp_path / "jsonl") == 0
    (sample,) = samples_of(tmp_path / "jsonl")
    assert (sample.key, sample.questions) == ("b", (Question("what?", ("x",)),))
    source = saved_report(tmp_path / "jsonl")["source"]
    assert (source["command"], source["question"], source["answer"], source["caption"]) == ("jsonl", "q", "a", "")

    capsys.readouterr()
    assert (
        vlp_data("csv", "--file", tmp_path / "x.csv", "--images", images, "--out", tmp_path / "no", "--delimiter", "::")
        == 2
    )
    assert "vlp-data: --delimiter ::: give one character" in capsys.readouterr().err
    assert vlp_data("jsonl", *words[:4], "--out", tmp_path / "no", "--answer", "a") == 2
    assert "name its column with --question" in capsys.readouterr().err
