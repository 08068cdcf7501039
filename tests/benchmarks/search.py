"""Vectors of 256 numbers in each kind of index: queries a second against exact search, recall@10, memory.

    make bench PART=search
    python -m tests.benchmarks.search --count 1000000 --folder DIR

Synthetic: around 10,000 centres, as captions of like photos lie; queries are drawn as the vectors are. Queries run one
by one on one thread, as a page asks them, each kind in a process of its own that maps the index, in turn. Memory is
what such a process takes. A million takes a graph most of an hour to build on one core, so 50,000 is the default, and
`--folder` keeps what was built: `--build` builds there and asks nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.measuring import in_own_process
from tests.benchmarks.results import Result, of_rounds, report
from vlp.search.vectors import KINDS, build, exact_nearest, faiss, load, nearest, save

WIDTH, CHUNK, CENTRES, ROUNDS = 256, 50_000, 10_000, 3


def vectors(count: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Vectors of length 1, a chunk at a time."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, WIDTH), dtype=np.float32)
    for start in range(0, count, CHUNK):
        rng = np.random.default_rng([seed, start])
        size = min(CHUNK, count - start)
        part = centres[rng.integers(CENTRES, size=size)] + rng.standard_normal((size, WIDTH), dtype=np.float32)
        yield part / np.linalg.norm(part, axis=1, keepdims=True)


def ask(path: str, query_path: str) -> None:
    faiss().omp_set_num_threads(1)
    query_QD = np.load(query_path)
    before = resident()
    index = load(Path(path))
    nearest(index, query_QD[:5], 10)
    start = time.perf_counter()
    found = [nearest(index, query_QD[number : number + 1], 10)[1][0].tolist() for number in range(len(query_QD))]
    seconds = time.perf_counter() - start
    print(json.dumps({"found": found, "queries/s": len(query_QD) / seconds, "memory MB": resident() - before}))


def resident() -> float:
    """Megabytes of this process in memory, mapped pages included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)


def made(kind: str, count: int, folder: Path) -> tuple[Path, float]:
    """The index in the folder, built if it is not there, and the CPU seconds that this took."""
    path = folder / f"{kind}-{count}.faiss"
    said = path.with_suffix(".json")
    if not said.exists():
        begun = time.process_time()
        save(build(kind, WIDTH, count, lambda: vectors(count, 1)), path)  # type: ignore[arg-type]
        said.write_text(json.dumps(time.process_time() - begun), encoding="utf-8")
    return path, float(json.loads(said.read_text(encoding="utf-8")))


def measure(count: int, queries: int, kinds: Sequence[str], folder: Path) -> Iterator[Result]:
    query_QD, query_path = np.concatenate(list(vectors(queries, seed=2))), folder / "queries.npy"
    np.save(query_path, query_QD)
    _, true_QK = exact_nearest(lambda: vectors(count, 1), query_QD, 10)
    indexes = {kind: made(kind, count, folder) for kind in dict.fromkeys(["exact", *kinds])}
    said: dict[str, list[dict[str, Any]]] = {kind: [] for kind in indexes}
    for _ in range(ROUNDS):
        for kind, (path, _) in indexes.items():
            said[kind].append(in_own_process("tests.benchmarks.search", "--ask", str(path), str(query_path)))
    for kind, (path, built) in indexes.items():
        hits = [len(set(t) & set(f)) for t, f in zip(true_QK.tolist(), said[kind][0]["found"], strict=True)]
        figures = {
            "recall@10": float(np.mean(hits) / 10),
            "queries/s": statistics.median(one["queries/s"] for one in said[kind]),
            "memory, MB": statistics.median(one["memory MB"] for one in said[kind]),
            "on disk, MB": path.stat().st_size / (1 << 20),
            "building, CPU s": built,
        }
        pairs = zip(said[kind], said["exact"], strict=True)
        ratios = [one["queries/s"] / exact["queries/s"] for one, exact in pairs]
        against = f"queries a second against the exact index; {count:,} vectors"
        yield of_rounds(f"search/{kind}/{count}", ratios, against=against, figures=figures)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="Where indexes are kept, and taken from; none are kept by default.")
    parser.add_argument("--build", action="store_true", help="Build them there and ask nothing.")
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        ask(*given.ask)
        return
    with TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if given.build:
            for kind in given.kinds:
                print(*made(kind, given.count, folder), flush=True)
        else:
            report("search", __doc__, list(measure(given.count, given.queries, given.kinds, folder)))


if __name__ == "__main__":
    main()
