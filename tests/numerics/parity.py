"""Our models against the official implementations' numbers.

    python tests/numerics/parity.py DIR

DIR is a folder of official numbers (see `parity_cases/fixture.py`). Its weights go through `vlp convert`; then every
output, loss and gradient is compared. Prints a table of differences; exit code 1 above a tolerance, or where an
official output is not compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import tests.conftest  # noqa: F401  # no network, few threads

import torch
from torch import Tensor

from tests.numerics.parity_cases import lxmert, uniter, vilbert, vilt, visualbert, vl_bert
from tests.numerics.parity_cases.fixture import Fixture, Losses, Ours, Results

FAMILIES: Mapping[str, Callable[[Fixture], tuple[Results, list[Losses]]]] = {
    "lxmert": lxmert.run,
    "uniter": uniter.run,
    "vilbert": vilbert.run,
    "vilt": vilt.run,
    "visualbert": visualbert.run,
    "vl_bert": vl_bert.run,
}
EXACT, PLAIN = 1e-9, 1e-4
"""Largest difference in float64, from the official code's float64; and in float32, from its float32."""
RELATIVE, SLACK = 1e-3, 1e-4
"""Allowed of a gradient's norm and sum, which a folder gives in 6 digits."""
NEVER = float("inf")


@dataclass(frozen=True)
class Check:
    """One comparison."""

    what: str
    precision: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def good(self) -> bool:
        return self.difference <= self.tolerance  # false for NaN


def compare(directory: Path) -> list[Check]:
    """All comparisons that a folder allows, in float64 and in float32."""
    checks: list[Check] = []
    for dtype, precision in ((torch.float64, "float64"), (torch.float32, "float32")):
        fixture = Fixture(directory, dtype)
        results, losses = FAMILIES[fixture.config["family"]](fixture)
        checks += _outputs(fixture, results, precision)
        if precision == "float64":
            checks += [_gradients(fixture, losses, name) for name in fixture.gradients]
    return checks


def _outputs(fixture: Fixture, results: Results, precision: str) -> Iterator[Check]:
    for name, plain in fixture.wanted_f32.items():
        wanted, tolerance = plain, PLAIN
        if precision == "float64":
            if name not in fixture.wanted_f64:
                continue  # no float64 twin: compared in float32 only
            wanted, tolerance = fixture.wanted_f64[name], EXACT
        difference, note = (NEVER, "not compared") if name not in results else difference_of(results[name], wanted)
        yield Check(name, precision, difference, tolerance, note)


def difference_of(ours: Ours, wanted: Tensor) -> tuple[float, str]:
    """Largest absolute difference where the official numbers mean something, and what there is to say."""
    value = ours.value.detach()
    if value.numel() == wanted.numel() == 1:  # some official losses have one axis
        value = value.reshape(wanted.shape)
    if value.shape != wanted.shape:
        return NEVER, f"shape {list(value.shape)}, official {list(wanted.shape)}"
    if ours.valid is not None:
        value, wanted = value[ours.valid], wanted[ours.valid]
    if not value.numel():
        return (0.0, "empty") if not wanted.numel() and ours.valid is None else (NEVER, "nothing to compare")
    difference = (value.to(torch.float64) - wanted.to(torch.float64)).abs()
    neither = value.isnan() & wanted.isnan()  # a mean over nothing
    return float(difference.masked_fill(neither, 0).max()), ""


def _gradients(fixture: Fixture, losses: list[Losses], name: str) -> Check:
    """The worst of a loss's gradients, as a multiple of what is allowed."""
    what = f"gradients of {name}"
    own = next((each for each in losses if name in each.values), None)
    if own is None:
        return Check(what, "float64", NEVER, 1, "not compared")
    wanted, found = fixture.gradients[name], own.gradients(name)
    strangers = sorted(set(wanted) - set(found))
    if strangers:
        return Check(what, "float64", NEVER, 1, f"no parameter {strangers[0]}")
    worst, where = 0.0, ""
    for parameter, grad in found.items():
        official = wanted.get(parameter, (0.0, 0.0))  # one that is not listed got none
        for ours, theirs in zip((float(grad.norm()), float(grad.sum())), official, strict=True):
            ratio = abs(ours - theirs) / (RELATIVE * abs(theirs) + SLACK)
            if not ratio <= worst:
                worst, where = ratio, parameter
    return Check(what, "float64", worst, 1, f"of what is allowed, at {where}")


def main(directory: Path) -> int:
    """Compare, print the table, say whether all is well."""
    from rich.console import Console
    from rich.table import Table

    checks = compare(directory)
    table = Table("tensor", "float64", "float32", "")
    for what in dict.fromkeys(check.what for check in checks):
        own = {check.precision: check for check in checks if check.what == what}
        cells = [f"{own[p].difference:.1e}" if p in own else "" for p in ("float64", "float32")]
        bad = [check.precision for check in own.values() if not check.good]
        notes = [f"[bold red]DIFFERS in {' and '.join(bad)}[/]"] if bad else []
        table.add_row(what, *cells, " ".join([*notes, *dict.fromkeys(c.note for c in own.values() if c.note)]))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    good = sum(check.good for check in checks)
    console.print(
        f"{directory}: {good} of {len(checks)} comparisons within {EXACT:g} (float64) and {PLAIN:g} (float32)"
    )
    return 0 if checks and good == len(checks) else 1


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "config.json").is_file():
        sys.exit("usage: python tests/numerics/parity.py DIR, a folder of official numbers with a config.json")
    sys.exit(main(Path(sys.argv[1])))
