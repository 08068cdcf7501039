from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.importing.plan import checked, cut, part_of
from data_tools.importing.record import Record
from data_tools.options import Choices
from data_tools.report import Report
from tests.unit.import_running import skipped
from vlp.types import Question

GOLDEN = ["train", "test", "train", "train", "train", "train", "train", "val"]
SPLIT = (("train", 0.8), ("val", 0.15), ("test", 0.05))


@given(st.integers(0, 40), st.integers(1, 7), st.sampled_from([(), SPLIT]))
def test_every_record_is_in_one_shard(count: int, per_shard: int, split: tuple[tuple[str, float], ...]) -> None:
    records = [Record(f"{number}.jpg", ("a",)) for number in range(count)]
    choices = Choices(Path("out"), samples_per_shard=per_shard, split=split)
    jobs = list(cut(records, choices, text_only=False))
    assert sorted(int(record.id(False)) for job in jobs for record in job.records) == list(range(count))
    for part in {job.part for job in jobs}:
        mine = [job for job in jobs if job.part == part]
        assert [job.number for job in mine] == list(range(len(mine)))
        assert all(len(job.records) == per_shard for job in mine[:-1])
        numbers = [int(record.id(False)) for job in mine for record in job.records]
        assert numbers == sorted(numbers)
        assert all(part_of(record.id(False), split) == part for job in mine for record in job.records)


def test_parts_have_their_shares_and_do_not_change() -> None:
    parts = [part_of(f"COCO_train2014_{number:012d}", SPLIT) for number in range(20_000)]
    for name, share in SPLIT:
        assert parts.count(name) / 20_000 == pytest.approx(share, abs=0.01)
    # Whoever has split a dataset must find the same images in each part ever after.
    assert [part_of(name, SPLIT) for name in "01234567"] == GOLDEN
    assert part_of("cho\u0301", SPLIT) == part_of("chó", SPLIT)


def test_records_are_checked_before_anything_is_read() -> None:
    records = [
        Record("a.jpg", (" cho\u0301 ", " ")),
        Record("a.png", ("the same key",)),
        Record("b.jpg"),
        Record("c.jpg", (), (Question(" "), Question("?"))),
        Record("/etc/d.jpg", ("a",)),
        Record("x/../d.jpg", ("a",)),
        Record("x\\d.jpg", ("a",)),
        Record("", ("a",)),
        Record("b.jpg", ("has one now",)),
    ]
    report = Report({})
    taken = list(checked(records, report, text_only=False))
    assert [(record.file, record.captions) for record in taken] == [
        ("a.jpg", ("chó",)),
        ("c.jpg", ()),
        ("b.jpg", ("has one now",)),
    ]
    assert taken[1].questions == (Question("?"),)
    assert skipped(report) == {
        "empty caption": (1, ["a.jpg"]),
        "another image has the same key": (1, ["a.png"]),
        "image without a text": (1, ["b.jpg"]),
        "empty question": (1, ["c.jpg"]),
        "image name points outside the directory of images": (3, ["/etc/d.jpg", "x/../d.jpg", "x\\d.jpg"]),
        "image without a name": (1, [""]),
    }


def test_a_made_up_name_is_taken_whole() -> None:
    records = [Record("wiki.en-1", ("a",)), Record("wiki.en-2", ("b",))]
    taken = list(checked(records, Report({}), text_only=True))
    assert [(record.id(True), record.key(True)) for record in taken] == [
        ("wiki.en-1", "wiki_en-1"),
        ("wiki.en-2", "wiki_en-2"),
    ]
