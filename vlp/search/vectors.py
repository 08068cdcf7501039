"""Nearest vectors by faiss: the kinds of index, how each is built, and how many of the nearest it finds.

Vectors have length 1, so their product is the cosine. Shape suffixes: N vectors, Q queries, D numbers of a vector, K
nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vlp.errors import ConfigError, DataError

Kind = Literal["exact", "ivf", "hnsw"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Chunks = Callable[[], Iterable[NDArray[np.float32]]]
"""Gives all vectors, some thousands at a time; may be called again."""

_LINKS = 32
"""Of a vector in an HNSW graph (Malkov and Yashunin 2016, arXiv 1603.09320, `M`): for some hundred dimensions."""
_BUILD_DEPTH, _SEARCH_DEPTH = 40, 128
"""Candidates kept while a graph is built, and while it is searched (`efConstruction`, `ef`). Of 100,000 vectors of 256
numbers 100 while building finds 95.2 % of the nearest ten, 40 finds 93.7 % and builds 2.7 times as fast."""
_PER_LIST = 39
"""Vectors that faiss wants for each list of an IVF to learn its centre from."""
_TRAINED_ON = 200_000
_PROBED, _LEAST_PROBED = 1 / 16, 8
"""Share of an IVF's lists that a query looks into, and how many at least: so few vectors are better all looked at."""
_SAME = 1e-5
"""Cosines that differ by less are a tie: rounding decides which comes first."""
MOST_BREADTH = 1000.0


def faiss() -> Any:
    """The library, which is an extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss as library
    except ImportError:
        raise ConfigError("search needs faiss; install it with `pip install 'vlp[search]'`") from None
    return library


def build(kind: Kind, width: int, count: int, chunks: Chunks) -> Any:
    """An index of all vectors.

    Args:
        count: how many vectors there are.
    """
    library = faiss()
    product = library.METRIC_INNER_PRODUCT
    if kind == "exact":
        index = library.IndexFlatIP(width)
    elif kind == "hnsw":
        index = library.IndexHNSWFlat(width, _LINKS, product)
        index.hnsw.efConstruction, index.hnsw.efSearch = _BUILD_DEPTH, _SEARCH_DEPTH
    else:
        lists = max(1, min(round(4 * math.sqrt(count)), count // _PER_LIST))
        quantizer = library.IndexFlatIP(width)
        index = library.IndexIVFFlat(quantizer, width, lists, product)
        index.own_fields = True
        index.cp.min_points_per_centroid = 1  # lists are as few as the vectors want; it would warn of that
        quantizer.this.disown()
        index.nprobe = min(lists, max(_LEAST_PROBED, round(lists * _PROBED)))
        index.train(_drawn(chunks, count, min(count, _TRAINED_ON)))
    for part in chunks():
        index.add(part)
    return index


def save(index: Any, path: Path) -> None:
    faiss().write_index(index, str(path))


def load(path: Path) -> Any:
    """A saved index, mapped into memory: pages are read as they are needed, and shared by all processes.

    Raises:
        DataError: it is missing or damaged.
    """
    library = faiss()
    try:
        return library.read_index(str(path), library.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{path}: is no index of vectors ({reason}); build it again with `vlp index`") from None


def widen(index: Any, factor: float) -> None:
    """Look at more (or fewer) candidates than an index does by itself: slower, and nearer to the truth.

    Raises:
        ConfigError: not above 0, or beyond `MOST_BREADTH`; or an exact index, which looks at everything.
    """
    if not 0 < factor <= MOST_BREADTH:
        raise ConfigError(f"--breadth: {factor:g} is not right, give a number above 0 and up to {MOST_BREADTH:g}")
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = max(1, round(index.hnsw.efSearch * factor))
    elif hasattr(index, "nprobe"):
        index.nprobe = max(1, min(index.nlist, round(index.nprobe * factor)))
    elif factor != 1:
        raise ConfigError("--breadth: an exact index looks at everything; leave it out")


def nearest(index: Any, query_QD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines and numbers of the nearest vectors, each [Q, K], the nearest first.

    A query for which an index finds fewer (where many vectors are alike, lists are empty and a graph falls apart) is
    asked again of all vectors.

    Args:
        k: at most as many as there are vectors.
    """
    query_QD = np.ascontiguousarray(query_QD, np.float32)
    score_QK, number_QK = index.search(query_QD, k)
    short_Q = (number_QK < 0).any(1)
    if short_Q.any():
        score_QK[short_Q], number_QK[short_Q] = _looked_through(index, query_QD[short_Q], k)
    return score_QK, number_QK


def _looked_through(index: Any, query_QD: NDArray[np.float32], k: int) -> Any:
    if hasattr(index, "hnsw"):
        return index.storage.search(query_QD, k)
    if hasattr(index, "nprobe"):
        return index.search(query_QD, k, params=faiss().SearchParametersIVF(nprobe=index.nlist))
    return index.search(query_QD, k)


def exact_nearest(
    chunks: Chunks, query_QD: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines and numbers of the truly nearest vectors, each [Q, K], with one chunk in memory at a time."""
    best_QK = np.full((len(query_QD), 0), 0, np.int64)
    score_QK = np.full((len(query_QD), 0), 0, np.float32)
    start = 0
    for part in chunks():
        scores = np.concatenate([score_QK, query_QD @ part.T], axis=1)
        numbers = np.concatenate(
            [best_QK, np.broadcast_to(np.arange(start, start + len(part)), (len(query_QD), len(part)))], axis=1
        )
        kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        score_QK, best_QK = np.take_along_axis(scores, kept, 1), np.take_along_axis(numbers, kept, 1)
        start += len(part)
    return score_QK, best_QK


def recall(index: Any, chunks: Chunks, query_QD: NDArray[np.float32], k: int = 10) -> float:
    """Share of the truly nearest k that an index finds, a mean over queries (recall k@k).

    What is as near as the k-th counts, whichever of those that tie it is (Aumueller et al. 2018, arXiv 1807.05614,
    section 3).
    """
    true_QK, _ = exact_nearest(chunks, query_QD, k)
    found_QK, _ = nearest(index, query_QD, true_QK.shape[1])
    return float((found_QK >= true_QK[:, -1:] - _SAME).mean())


def _drawn(chunks: Chunks, count: int, wanted: int) -> NDArray[np.float32]:
    """Some of the vectors, evenly over all."""
    step, parts, place = max(1, count // wanted), [], 0
    for part in chunks():
        parts.append(part[(-place) % step :: step])
        place += len(part)
    return np.concatenate(parts)
