"""What an evaluation says: numbers by kind, results files, the page of failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.unit.pictures import encoded
from tests.unit.task_making import dataset, sample
from vlp.distributed import world
from vlp.failurepage import failures, write_page
from vlp.report import Report, write_results
from vlp.tasks.outcomes import Judgement, Outcome, groups, intervals, means
from vlp.types import Sample


def outcome(number: int, score: float | None, kind: str = "a", place: str = "x/k") -> Outcome:
    scores = {} if score is None else {"accuracy": score}
    return Outcome(str(number), place, "what", "this", ("that",), scores, {"type": kind})


OUTCOMES = [outcome(0, 1.0), outcome(1, 0.0), outcome(2, 0.3, "b"), outcome(3, None, "b"), outcome(4, 0.5, "b")]


def test_means_by_kind() -> None:
    assert means(OUTCOMES) == {"accuracy": pytest.approx(1.8 / 4)}
    found = {(group.type, group.kind): (group.count, group.metrics) for group in groups(OUTCOMES)}
    assert found == {
        ("type", "a"): (2, {"accuracy": 0.5}),
        ("type", "b"): (2, {"accuracy": pytest.approx(0.4)}),  # the one without an answer does not count
    }
    low, high = intervals(OUTCOMES, 0)["accuracy"]
    assert low == high == pytest.approx(0.45)  # all are of one image, so there is nothing to draw


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judgement = Judgement({**means(OUTCOMES), "questions": 4.0}, OUTCOMES, ("a note [of] sorts",))
    report = Report.of(judgement, {"model": "m", "task": "vqa"}, seed=0)
    report.write(tmp_path / "deep" / "r.json")
    found = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert found["model"] == "m"
    assert found["by_type"] == {
        "type": {"a": {"count": 2, "accuracy": 0.5}, "b": {"count": 2, "accuracy": pytest.approx(0.4)}}
    }
    assert found["notes"] == ["a note [of] sorts"]
    report.show("a title")
    said = capsys.readouterr().out
    for words in ("a title", "accuracy", "0.4500", "questions", "note: a note [of] sorts"):
        assert words in said


def test_results_as_the_challenge_has_them(tmp_path: Path) -> None:
    made = [Outcome(id, "x/k", "what", "yes") for id in ("42", "n5", "007")]
    write_results(tmp_path / "r.json", Judgement({}, made))
    assert json.loads((tmp_path / "r.json").read_text()) == [
        {"question_id": 42, "answer": "yes"},
        {"question_id": "n5", "answer": "yes"},
        {"question_id": 7, "answer": "yes"},
    ]


def test_the_worst_failures_are_shown() -> None:
    judgement = Judgement({}, OUTCOMES)
    assert [each.id for each in failures(judgement, 9)] == ["1", "2", "4"]
    assert [each.id for each in failures(judgement, 2)] == ["1", "2"]
    many = Judgement({}, [outcome(number, 0.0) for number in range(100)])
    assert [each.id for each in failures(many, 4)] == ["0", "25", "50", "75"]  # of equal ones, from everywhere


def test_the_page_of_failures(tmp_path: Path) -> None:
    picture = encoded(Image.new("RGB", (600, 300), (200, 10, 10)))
    samples = [Sample("k0", picture, captions=("red",)), Sample("k1", b"no image", captions=("red",))]
    with world():
        data = dataset(tmp_path / "data", [sample(9, "red"), *samples])
        stem = data.shard_name(0).removesuffix(".tar")
        made = [
            Outcome("1", f"{stem}/k0", "is it <red>?", "no", ("yes",), {"accuracy": 0.0}),
            Outcome("2", f"{stem}/s9", "red", f"{stem}/k0", (f"{stem}/s9",), {"accuracy": 0.0}),
            Outcome("3", f"{stem}/k0", "fine", "yes", ("yes",), {"accuracy": 1.0}),
        ]
        assert write_page(tmp_path / "page.html", Judgement({}, made), data, "a & b", 50) == 2
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article>") == 2
    assert "is it &lt;red&gt;?" in page
    assert "<h1>a &amp; b</h1><p>2 of 2 failures among 3 examples" in page
    assert page.count("data:image/jpeg") == 2  # the picture asked about, and the one that was found
    assert "no picture in the shards" in page
