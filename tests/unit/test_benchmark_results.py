"""Benchmarks keep what other parts measured, and each part of `make bench` is a module that measures."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.benchmarks import measuring, results
from tests.benchmarks.__main__ import PARTS
from tests.benchmarks.measuring import device_of
from tests.benchmarks.results import HEAD, Result, compared, of_rounds, report, with_section


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "benchmarks.md")


def _rows() -> dict[str, float]:
    return {row["name"]: row["ratio"] for row in json.loads(results.RESULTS.read_text())}


def _one(name: str, ratio: float, **more: float) -> Result:
    return of_rounds(name, [ratio], against="the other", **more)  # type: ignore[arg-type]


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    seconds = {"vlp": [1.0, 2.0, 1.0], "theirs": [2.0, 6.0, 2.5]}
    found = compared("loader/x", seconds, against="theirs", count=10, unit="images")
    assert (found.ratio, found.lowest, found.highest, found.repeats) == (2.5, 2.0, 3.0, 3)
    assert found.figures == {"vlp, images/s": 10, "theirs, images/s": 4}


def test_a_run_of_one_part_replaces_its_rows_alone() -> None:
    report("loader", "Photos.", [_one("loader/a", 1.0), _one("loader/b", 2.0)])
    report("training", "Steps.", [_one("train/a", 3.0)])
    report("loader", "Photos.", [_one("loader/a", 1.5)])
    assert _rows() == {"loader/a": 1.5, "loader/b": 2.0, "train/a": 3.0}
    page = results.PAGE.read_text()
    assert page.count("## loader") == 1
    assert "| `loader/a` | **1.50** |" in page
    assert "| `train/a` | **3** |" in page


def test_figures_of_a_gpu_stand_beside_those_of_the_cpu() -> None:
    report("training", "Steps.", [_one("train/a", 2.0)])
    report("training", "Steps.", [_one("train/a", 4.0)], device="cuda")
    rows = json.loads(results.RESULTS.read_text())
    assert [(row["device"], row["ratio"]) for row in rows] == [("cpu", 2.0), ("cuda", 4.0)]


def test_what_was_taken_on_another_machine_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    report("training", "Steps.", [_one("train/a", 2.0)])
    monkeypatch.setattr(measuring, "_processor", lambda: "Another (AVX2)")
    for again in (3.0, 4.0):
        report("training", "Steps.", [_one("train/a", again)])
    assert [row["ratio"] for row in json.loads(results.RESULTS.read_text())] == [2.0, 4.0]
    results.RESULTS.unlink()
    report("training", "Steps.", [_one("train/a", 5.0)])
    tables = re.findall(r"^Taken on .*?: (.*?);.*?`train/a` \| \*\*(\d)\*\*", results.PAGE.read_text(), re.M | re.S)
    assert [ratio for _, ratio in tables] == ["2", "5"]
    assert tables[1][0].startswith("Another (AVX2), ")


def test_rows_from_before_a_host_s_share_was_taken_tell_none(monkeypatch: pytest.MonkeyPatch) -> None:
    report("loader", "Photos.", [_one("loader/a", 1.0)])
    rows = json.loads(results.RESULTS.read_text())
    del rows[0]["on"]["taken by the host"]
    results.RESULTS.write_text(json.dumps(rows))
    results.PAGE.unlink()
    monkeypatch.setattr(measuring, "_processor", lambda: "Another (AVX2)")
    report("loader", "Photos.", [_one("loader/a", 2.0)])
    taken = [line for line in results.PAGE.read_text().splitlines() if line.startswith("Taken on ")]
    assert ["the host" in line for line in taken] == [False, True]


def test_sections_that_this_machine_has_not_measured_stay() -> None:
    page = f"{HEAD}\n## loader\n\nold\n\n## search\n\nkept\n"
    assert with_section(page, "loader", "## loader\n\nnew") == f"{HEAD}\n## loader\n\nnew\n\n## search\n\nkept\n"


def test_rows_that_another_copy_of_the_project_measured_stay() -> None:
    report("loader", "Photos.", [_one("loader/a", 1.0), _one("loader/b", 2.0)])
    results.RESULTS.unlink()
    report("loader", "Photos.", [_one("loader/a", 1.5), _one("loader/c", 3.0)])
    lines = [line for line in results.PAGE.read_text().splitlines() if line.startswith(("| `", "Taken on"))]
    assert [line.split("`")[1] for line in lines if "`" in line] == ["loader/b", "loader/a", "loader/c"]
    assert "| `loader/a` | **1.50** |" in results.PAGE.read_text()
    assert len(lines) == 5, "each table says what it was taken on"


def test_what_missed_its_mark_says_so() -> None:
    report("training", "Steps.", [_one("train/a", 1.9, at_least=2.0), _one("train/b", 2.0, at_least=2.0)])
    lines = {line.split("`")[1]: line for line in results.PAGE.read_text().splitlines() if line.startswith("| `")}
    assert "2 (missed)" in lines["train/a"]
    assert "missed" not in lines["train/b"]


def test_a_figure_is_taken_on_a_named_machine() -> None:
    report("loader", "Photos.", [_one("loader/a", 1.0)])
    (row,) = json.loads(results.RESULTS.read_text())
    assert {"processor", "cores", "threads", "load before", "taken by others", "taken by the host"} < set(row["on"])
    assert row["on"]["versions"]["torch"]


def test_a_gpu_that_is_not_there_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_of("auto") == device_of("cpu") == "cpu"
    with pytest.raises(SystemExit, match="--device cuda: torch finds no GPU"):
        device_of("cuda")


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_a_module(part: str) -> None:
    assert importlib.util.find_spec(f"tests.benchmarks.{part}")
