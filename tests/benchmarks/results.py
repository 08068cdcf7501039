"""How the benchmarks measure and report: repeated and interleaved, a table on the terminal, JSON in runs/bench."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path("runs/bench")


def rate(count: int, seconds: Sequence[float]) -> dict[str, float]:
    """Things per second: the median run, and the slowest and fastest."""
    return {
        "median": count / statistics.median(seconds),
        "lowest": count / max(seconds),
        "highest": count / min(seconds),
    }


def spread(values: Mapping[str, float]) -> str:
    """A rate as a cell of a table."""
    return f"{values['median']:,.0f} ({values['lowest']:,.0f} to {values['highest']:,.0f})"


def in_own_process(module: str, *arguments: str) -> dict[str, Any]:
    """What a module prints as its last line, in JSON: for measures of memory, which no earlier run may have touched."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def megabytes(process: str = "self") -> float:
    """Memory that a process has, in MB, what it shares counted by its part (Linux)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def peak_megabytes() -> float:
    """The most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=max(100, Console().width)).print(table)


def save(name: str, result: Mapping[str, Any]) -> None:
    """Write `runs/bench/<name>.json` with what the figures were taken on."""
    facts = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {each: version(each) for each in ("torch", "torchvision", "pillow", "numpy", "webdataset")},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"on": facts, **result}, indent=1) + "\n", encoding="utf-8")
    print(f"{path}")
