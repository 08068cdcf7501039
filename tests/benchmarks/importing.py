"""An import's speed: images per second with one process and with more, with and without a resize.

    python -m tests.benchmarks.importing [WORKERS ...]

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
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.benchmarks.material import photo_files
from tests.benchmarks.results import rate, save, show, spread

REPEATS = 5
SHARD = 100
KINDS = {"original bytes": (), "--resize 128": ("--resize", "128")}


def main(workers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        what, count = photo_files(folder / "photos")
        names = sorted(path.name for path in (folder / "photos").iterdir())
        (folder / "captions.tsv").write_text("\n".join(f"{name}\ta photo" for name in names))
        cpu: dict[str, list[float]] = {}
        runs = {
            f"{kind}, {number} worker{'s' * (number > 1)}": _Import(folder, (*more, "--workers", str(number)), cpu)
            for kind, more in KINDS.items()
            for number in workers
        }
        seconds = interleaved(runs, REPEATS)
    rates = {name: rate(count, taken) for name, taken in seconds.items()}
    milliseconds = {name: 1000 * statistics.median(cpu[" ".join(run.words)]) / count for name, run in runs.items()}
    rows = [(name, spread(rates[name]), f"{milliseconds[name]:.2f}") for name in runs]
    show(f"import of {what}", ("", "images/s, median (slowest to fastest)", "CPU ms/image"), rows)
    save("importing", {"what": what, "images_per_second": rates, "cpu_ms_per_image": milliseconds})


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, each as often, in turn, so that what else the machine does meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


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
    main([int(word) for word in sys.argv[1:]] or [1, 2])
