from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.importers.daquar import read_daquar
from data_tools.report import Report
from tests.unit.import_running import samples_of, saved_report, skipped, vlp_data
from vlp.data.index import open_index
from vlp.errors import DataError
from vlp.types import Question


def _file(folder: Path, text: str) -> Path:
    (folder / "qa.txt").write_text(text, encoding="utf-8")
    return folder / "qa.txt"


def test_a_set_of_answers_is_one_answer(tmp_path: Path) -> None:
    triples = "what is it ?\nbook, tape_dispenser\nimage3\nhow many ?\n2\nimage1\nwhere ?\nở_đâu\nimage3\n\n"
    report = Report({})
    records = read_daquar(_file(tmp_path, triples), None, report)
    assert [record.file for record in records] == ["image3", "image1"]
    assert records[0].questions == (
        Question("what is it ?", ("book, tape_dispenser",), "0"),
        Question("where ?", ("ở_đâu",), "2"),
    )
    assert (report.read, report.skipped) == ({"questions": 3, "images": 2}, {})


def test_images_are_found_by_name_with_any_extension(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("image1.PNG", "image3.jpg", "image3.png", "image4.txt"):
        (images / name).write_bytes(b"")
    report = Report({})
    triples = "".join(f"q ?\na\nimage{number}\n" for number in (1, 3, 4))
    records = read_daquar(_file(tmp_path, triples), images, report)
    assert [record.file for record in records] == ["image1.PNG", "image3.jpg", "image4"]
    assert list(report.notes) == ["not taken: image3.jpg has the same name"]


def test_what_is_wrong_is_skipped_or_refused(tmp_path: Path) -> None:
    report = Report({})
    assert len(read_daquar(_file(tmp_path, "q ?\n\nimage1\nq ?\na\nimage1\n"), None, report)) == 1
    assert skipped(report) == {"question without an answer": (1, ["line 1"])}
    for text in ("", "q ?\na\n", "q ?\na\nimage1\nq ?\n"):
        with pytest.raises(DataError, match=r"qa\.txt: has \d lines, which is not three a sample; give DAQUAR's"):
            read_daquar(_file(tmp_path, text), None, Report({}))
    with pytest.raises(DataError, match=r"qa\.txt line 3: is no image's name, 'what is it \?'; give DAQUAR's"):
        read_daquar(_file(tmp_path, "a\nimage1\nwhat is it ?\na\nimage1\nwhy ?\n"), None, Report({}))


def test_daquar(tmp_path: Path, test_data: Path) -> None:
    source, out = test_data / "daquar", tmp_path / "out"
    words = ("--qa", source / "qa.894.raw.train.format_triple", "--images", source / "images", "--out", out)
    assert vlp_data("daquar", *words, "--regions", test_data / "regions/daquar") == 0
    manifest, report = open_index(out).manifest, saved_report(out)
    assert (manifest.samples, sum(entry.questions for entry in manifest.shards)) == (794, 6795)
    assert (report["skipped"], report["notes"], report["written"]["regions"]) == ({}, [], 8624)
    samples = samples_of(out)
    questions = [question for sample in samples for question in sample.questions]
    assert len({question.answers for question in questions}) == 968
    assert len({question.id for question in questions}) == 6795
    assert sum("," not in question.answers[0] for question in questions) == 6149
    assert (samples[0].key, samples[0].image) == ("image3", (source / "images" / "image3.jpg").read_bytes())
