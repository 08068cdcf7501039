"""An import's speed: how many times as fast with more processes as with one, with and without a resize.

    make bench PART=importing

The photos are those of `tests.benchmarks.material`; each import is a command of its own, so that its start counts too.
CPU time is that of all its processes: where it stays the same with more of them, another core is not wasted.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.material import photo_files
from tests.benchmarks.measuring import interleaved
from tests.benchmarks.results import Result, of_rounds, report

REPEATS = 3
SHARD = 100
KINDS = {"original_bytes": (), "resize_128": ("--resize", "128")}


def main(workers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        what, count = photo_files(folder / "photos")
        names = sorted(path.name for path in (folder / "photos").iterdir())
        (folder / "captions.tsv").write_text("\n".join(f"{name}\ta photo" for name in names))
        results = [
            result for kind, more in KINDS.items() for result in compare(folder, kind, more, workers, what, count)
        ]
    report("importing", __doc__, results)


def compare(
    folder: Path, kind: str, more: tuple[str, ...], workers: list[int], what: str, count: int
) -> Iterator[Result]:
    """An import with more processes against one."""
    cpu: dict[str, list[float]] = {}
    runs = {str(number): _Import(folder, (*more, "--workers", str(number)), cpu) for number in (1, *workers)}
    seconds = interleaved(runs, REPEATS)
    spent = {number: 1000 * statistics.median(cpu[" ".join(run.words)]) / count for number, run in runs.items()}
    for number in map(str, workers):
        ratios = [one / more for one, more in zip(seconds["1"], seconds[number], strict=True)]
        figures = {
            f"{each}, {name}": value
            for each in ("1", number)
            for name, value in (
                ("images/s", count / statistics.median(seconds[each])),
                ("CPU ms/image", spent[each]),
            )
        }
        yield of_rounds(
            f"importing/{kind}/{number}_workers",
            ratios,
            against=f"{number} processes against one; {what}",
            figures=figures,
        )


class _Import:
    """One import, whose CPU time is put with that of the others like it."""

    def __init__(self, folder: Path, words: tuple[str, ...], cpu: dict[str, list[float]]) -> None:
        self.folder, self.words, self._cpu = folder, words, cpu

    def __call__(self) -> None:
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        source = ("--file", self.folder / "captions.tsv", "--images", self.folder / "photos")
        words = ("tsv", *source, "--out", out, "--samples-per-shard", SHARD, *self.words)
        before = _cpu_seconds()
        command = [sys.executable, "-m", "data_tools.cli", *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self._cpu.setdefault(" ".join(self.words), []).append(_cpu_seconds() - before)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [2])
