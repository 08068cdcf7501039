"""One million vectors of 256 numbers in each kind of index: recall@10, queries a second, memory, time to build.

    make bench PART=search

Synthetic: around 10,000 centres, as captions of like photos lie; queries are drawn as the vectors are. Queries run one
by one on one thread, as a page asks them. Memory is what a fresh process takes that maps the index and asks it; all
threads build.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.results import in_own_process, show
from tests.benchmarks.results import save as save_results
from vlp.search.vectors import KINDS, build, exact_nearest, faiss, load, nearest, save

WIDTH, CHUNK, CENTRES = 256, 50_000, 10_000


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


def main(count: int, queries: int, kinds: Sequence[str]) -> None:
    query_QD = np.concatenate(list(vectors(queries, seed=2)))
    true_QK = exact_nearest(lambda: vectors(count, 1), query_QD, 10)
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as folder:
        query_path, path = Path(folder) / "queries.npy", Path(folder) / "x.faiss"
        np.save(query_path, query_QD)
        for kind in kinds:
            start = time.perf_counter()
            save(build(kind, WIDTH, count, lambda: vectors(count, 1)), path)  # type: ignore[arg-type]
            built = time.perf_counter() - start
            said = in_own_process("tests.benchmarks.search", "--ask", str(path), str(query_path))
            hits = [len(set(t) & set(f)) for t, f in zip(true_QK.tolist(), said.pop("found"), strict=True)]
            size = path.stat().st_size / (1 << 20)
            found[kind] = {"recall@10": float(np.mean(hits) / 10), **said, "build seconds": built, "disk MB": size}
            print(kind, found[kind], flush=True)
    names = ("recall@10", "queries/s", "memory MB", "disk MB", "build seconds")
    rows = [
        (kind, *(f"{one[name]:,.3f}" if name == "recall@10" else f"{one[name]:,.0f}" for name in names))
        for kind, one in found.items()
    ]
    show(f"{count:,} vectors of {WIDTH}", ("", *names), rows)
    save_results("search", {"count": count, "width": WIDTH, "queries": queries, "kinds": found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--ask", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        ask(*given.ask)
    else:
        main(given.count, given.queries, given.kinds)
