from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from data_tools.importers import text as text_module
from data_tools.importers.text import read_text
from data_tools.importing.command import Record
from data_tools.report import Report
from tests.unit.import_running import records_of, samples_of, skipped, vlp_data
from vlp.data.index import open_index


def _read(files: list[Path], paragraphs: bool = False, texts_per_sample: int = 2) -> tuple[list[Record], Report]:
    report = Report({})
    return list(read_text(files, report, paragraphs=paragraphs, texts_per_sample=texts_per_sample)), report


def test_a_text_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffmột\r\n\n two \nthree\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("four", encoding="utf-8")
    records, report = _read([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert [(record.file, record.captions, record.metadata) for record in records] == [
        ("000000000", ("một", " two "), {"source": "a.txt"}),
        ("000000001", ("three",), {"source": "a.txt"}),
        ("000000002", ("four",), {"source": "b.txt"}),
    ]
    assert report.read == {"files": 2, "texts": 4}


def test_a_text_is_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\none\n two\r\n \nthree\n\n\nfour\nfive", encoding="utf-8")
    records, _ = _read([tmp_path / "a.txt"], paragraphs=True)
    assert [record.captions for record in records] == [("one two", "three"), ("four five",)]


def test_what_is_wrong_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "_MAX_SAMPLE", 10)
    (tmp_path / "a.txt").write_bytes(b"1234567\nab\xff\n12345678901\nabc\nabcd\n")
    records, report = _read([tmp_path / "a.txt"], texts_per_sample=9)
    assert [record.captions for record in records] == [("1234567", "abc"), ("abcd",)]
    assert skipped(report) == {
        "line that is not UTF-8": (1, ["a.txt line 2"]),
        "text of more than 10 characters": (1, ["a.txt line 3"]),
    }
    (tmp_path / "b.txt").write_text("\none\n\n\n123456\n789012\n")
    assert skipped(_read([tmp_path / "b.txt"], paragraphs=True)[1]) == {
        "text of more than 10 characters": (1, ["b.txt line 5"])  # where the paragraph begins
    }


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a line of some forty letters, more or less\n" * 50_000)  # 2 MB
    tracemalloc.start()
    try:
        count = sum(
            len(record.captions) for record in read_text([path], Report({}), paragraphs=False, texts_per_sample=50)
        )
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()
    assert count == 50_000


def test_the_command_makes_a_text_only_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.txt").write_text("three\n")
    (tmp_path / "texts" / "a.txt").write_text("one \ntwo\n")
    (tmp_path / "more.md").write_text("four\n")
    words = ("text", "--file", tmp_path / "texts", "--file", tmp_path / "more.md", "--out", tmp_path / "out")
    assert vlp_data(*words) == 0
    samples = samples_of(tmp_path / "out")
    assert [sample.captions for sample in samples] == [("one", "two"), ("three",), ("four",)]
    assert all(sample.image is None and sample.regions is None for sample in samples)
    assert [record["source"] for record in records_of(tmp_path / "out")] == ["a.txt", "b.txt", "more.md"]
    assert open_index(tmp_path / "out").manifest.text_only
    assert vlp_data("text", "--file", tmp_path / "no", "--out", tmp_path / "no") == 2
    assert "--file" in capsys.readouterr().err
