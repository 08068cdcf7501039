"""What the benchmarks found: rows of `runs/bench/results.json`, tables on the terminal and in docs/benchmarks.md.

A part of the benchmarks ends with `report`, which puts its rows in place of those of the same names and machine, and
its section of the page in place of its earlier one; what other parts measured stays, and what other machines did.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.measuring import MACHINE

RESULTS = Path("runs/bench/results.json")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

`make bench` measures models and loading, sized for 15 minutes on two cores with AVX-512 (18 on two with AVX2, where
bf16 is left out), and writes this page and `runs/bench/results.json`. `make bench PART="loader retrieval"` measures
some parts (also `decoding`, `importing`, `order`, `shuffle`, `memory` and `memory_peers`) and replaces their rows
alone; `DEVICE=cuda` measures on a GPU. A part by itself (`python -m tests.benchmarks.retrieval`) takes larger samples,
and `--help` tells more.

Each figure is a ratio of what was measured in one process, the programs in turn and repeated: the median of the rounds'
own ratios, and the lowest and highest of them. "At least" is what the project holds itself to. Rows taken at different
times, or on different machines, stand in tables of their own.
"""


@dataclass(frozen=True)
class Result:
    """One figure."""

    name: str
    """part/what/how, as `train/visualbert_base/fp32`."""
    ratio: float
    lowest: float
    highest: float
    repeats: int
    against: str
    """What the ratio compares with what."""
    at_least: float | None = None
    """What it is held to."""
    figures: Mapping[str, float | str] = field(default_factory=dict)
    """What the ratio is made of, by name and unit: `{"vlp, tokens/s": 3200, "largest difference": 1e-6}`."""


def compared(
    name: str,
    seconds: Mapping[str, Sequence[float]],
    *,
    against: str,
    own: str = "vlp",
    other: str = "theirs",
    count: float = 1,
    unit: str = "calls",
    at_least: float | None = None,
    figures: Mapping[str, float | str] | None = None,
) -> Result:
    """How many times as fast `own` is as `other`, by rounds that `interleaved` measured.

    Args:
        count: of the things that each call does, called `unit`.
    """
    ratios = [theirs / ours for ours, theirs in zip(seconds[own], seconds[other], strict=True)]
    rates = {f"{who}, {unit}/s": count / statistics.median(seconds[who]) for who in (own, other)}
    found = {**rates, **(figures or {})}
    return of_rounds(name, ratios, against=against, at_least=at_least, figures=found)


def of_rounds(
    name: str,
    ratios: Sequence[float],
    *,
    against: str,
    at_least: float | None = None,
    figures: Mapping[str, float | str] | None = None,
) -> Result:
    """A result by the ratio of each round."""
    return Result(
        name, statistics.median(ratios), min(ratios), max(ratios), len(ratios), against, at_least, figures or {}
    )


def report(part: str, about: str | None, results: Sequence[Result], *, device: str = "cpu") -> None:
    """Show a part's results, and keep them in the file of results and on the page.

    Args:
        about: the docstring of the part's module, which says what is measured; it becomes the section's text.
    """
    facts = MACHINE.facts()
    rows = [{"part": part, "device": device, **asdict(result), "on": facts} for result in results]
    show_results(rows)
    new = {(result.name, device, _machine(facts)) for result in results}
    kept = [row for row in read_results() if (row["name"], row["device"], _machine(row["on"])) not in new]
    _write(RESULTS, json.dumps([*kept, *rows], indent=1) + "\n")
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEAD
    own = [row for row in [*kept, *rows] if row["part"] == part]
    earlier = tables_of(page, part, without={(row["name"], _machine(row["on"])) for row in own})
    _write(PAGE, with_section(page, part, section(part, about or "", own, earlier)))
    print(f"{RESULTS}, {os.path.relpath(PAGE)}", flush=True)


def read_results() -> list[dict[str, Any]]:
    """All rows measured so far."""
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    return found


def show_results(rows: Sequence[Mapping[str, Any]]) -> None:
    columns = ("name", "ratio", "lowest to highest", "at least", "figures")
    show("Results", columns, [(row["name"], *_cells(row)) for row in rows])


def section(
    part: str, about: str, rows: Sequence[Mapping[str, Any]], earlier: Sequence[tuple[str, list[str]]] = ()
) -> str:
    """A part's section of the page.

    Args:
        earlier: of what the page had already: what it was taken on, and rows as they stand there.
    """
    lines = [f"## {part}", "", inspect.cleandoc(about), ""]
    for where, old in earlier:
        lines += [where, "", *_HEAD_ROWS, *old, ""]
    for on, together in groupby(rows, key=lambda row: row["on"]):
        lines += [_where(on), "", *_HEAD_ROWS, *map(_row, together), ""]
    return "\n".join(lines)


def tables_of(page: str, part: str, without: Collection[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """What a section of the page holds: of each table what it was taken on and its rows, but for those of some names on
    some machines.

    The page is kept with the project and `runs` is not, so that it may hold what another copy of the project measured.
    """
    text = next((one for one in re.split(r"^## ", page, flags=re.M) if one.startswith(f"{part}\n")), "")
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("Taken on "):
            found.append((line, []))
            machine = line.split(": ", 1)[1].split("; load before ", 1)[0]
        elif found and line.startswith("| `") and (line.split("`")[1], machine) not in without:
            found[-1][1].append(line)
    return [(where, rows) for where, rows in found if rows]


def with_section(page: str, part: str, text: str) -> str:
    """The page with a section put in place of the part's earlier one; sections stand by name."""
    _, *sections = re.split(r"^(?=## )", page, flags=re.M)
    found = {one.splitlines()[0].removeprefix("## "): one.strip() for one in sections} | {part: text.strip()}
    return "\n\n".join([HEAD.strip(), *(found[name] for name in sorted(found))]) + "\n"


_HEAD_ROWS = ("| name | ratio | lowest to highest | at least | what | figures |", "|---|---|---|---|---|---|")


def _row(row: Mapping[str, Any]) -> str:
    ratio, spread, bar, figures = _cells(row)
    return f"| `{row['name']}` | **{ratio}** | {spread} | {bar} | {row['against']} | {figures} |"


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    bar = "" if row["at_least"] is None else f"{row['at_least']:g}"
    met = "" if row["at_least"] is None or row["ratio"] >= row["at_least"] else " (missed)"
    figures = "; ".join(f"{name} {_number(value)}" for name, value in row["figures"].items())
    ratio = _number(row["ratio"])
    return ratio, f"{_number(row['lowest'])} to {_number(row['highest'])} of {row['repeats']}", bar + met, figures


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _machine(on: Mapping[str, Any]) -> str:
    gpu = f", {on['gpu']}" if on["gpu"] else ""
    return f"{on['processor']}, {on['cores']} cores, {on['threads']} threads{gpu}"


def _where(on: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    host = f" and the host {100 * on['taken by the host']:.0f} %" if "taken by the host" in on else ""
    return (
        f"Taken on {on['date']}: {_machine(on)}; load before {on['load before']}, other programs took "
        f"{100 * on['taken by others']:.0f} % of the cores{host}; Python {on['python']}, {versions}."
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on the terminal."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=max(100, Console().width)).print(table)


def save(name: str, result: Mapping[str, Any]) -> None:
    """Write `runs/bench/<name>.json`: what was measured beside the ratios, with what it was taken on."""
    path = RESULTS.parent / f"{name}.json"
    _write(path, json.dumps({"on": MACHINE.facts(), **result}, indent=1) + "\n")
    print(f"{path}")
