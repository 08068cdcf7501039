"""A trace of the steps that were asked for."""

import gzip
import json
from pathlib import Path

import torch

from vlp.train.profiler import ProfileConfig, Profiler


def names(path: Path) -> set[str]:
    return {event.get("name", "") for event in json.loads(gzip.open(path).read())["traceEvents"]}


def test_the_window_is_traced_and_nothing_else(tmp_path: Path) -> None:
    profiler = Profiler(ProfileConfig(first=2, steps=2), tmp_path, rank=1)
    work = [torch.relu, torch.sin, torch.cos, torch.exp]
    for number, function in enumerate(work, 1):
        profiler.before(number)
        function(torch.ones(3))
    found = names(tmp_path / "profile" / "rank-00001.json.gz")
    assert {"aten::sin", "aten::cos"} <= found
    assert not {"aten::relu", "aten::exp"} & found


def test_a_window_that_the_run_does_not_fill_is_written(tmp_path: Path) -> None:
    profiler = Profiler(ProfileConfig(first=1, steps=50), tmp_path, rank=0)
    profiler.before(1)
    torch.sin(torch.ones(3))
    profiler.close()
    assert "aten::sin" in names(tmp_path / "profile" / "rank-00000.json.gz")


def test_a_run_that_resumes_behind_the_window_traces_nothing(tmp_path: Path) -> None:
    profiler = Profiler(ProfileConfig(first=3), tmp_path, rank=0)
    profiler.before(4)
    profiler.close()
    assert not (tmp_path / "profile").exists()
