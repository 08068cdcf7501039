"""Macro F1 against its definition; recall and median rank against other libraries' building blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from vlp.metrics.classes import macro_f1
from vlp.metrics.recall import median_rank, ranks_of_matches
from vlp.metrics.shortlist import best, reranked

LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30)


@given(LABELS)
def test_macro_f1(pairs: list[tuple[str, str]]) -> None:
    said, true = [one for one, _ in pairs], [other for _, other in pairs]
    scores = []
    for label in {*said, *true}:
        hits = sum(s == t == label for s, t in pairs)
        precision = hits / said.count(label) if label in said else 0.0
        recall = hits / true.count(label) if label in true else 0.0
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert macro_f1(said, true) == pytest.approx(np.mean(scores))


def test_macro_f1_by_hand() -> None:
    # a: precision 1/2, recall 1; b: recall 1/2, precision 1: both 2/3.
    assert macro_f1(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx(2 / 3)
    assert macro_f1([], []) == 0


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 4))
def test_ranks_against_scipy(seed: int, images: int, per_image: int) -> None:
    """Many texts per image, both ways, with ties: a match counts as behind what scores the same."""
    rng = np.random.default_rng(seed)
    scores_IT = rng.integers(0, 5, (images, images * per_image)).astype(np.float32)
    matches_IT = np.repeat(np.eye(images, dtype=bool), per_image, axis=1)
    for scores_QC, matches_QC in ((scores_IT, matches_IT), (scores_IT.T, matches_IT.T)):
        wanted = []
        for row, match in zip(scores_QC, matches_QC, strict=True):
            # A match may not be pushed back by another match of the same query.
            others = np.where(match, -np.inf, row)
            top = row[match].max()
            wanted.append(rankdata(np.append(-others, -top), method="max")[-1])
        found = ranks_of_matches(torch.from_numpy(scores_QC.copy()), torch.from_numpy(matches_QC.copy()))
        assert found.tolist() == wanted
        assert median_rank(found) == np.median(wanted)


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8), st.integers(1, 9))
def test_reranking(seed: int, queries: int, candidates: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    cheap, dear = (rng.normal(size=(queries, candidates)).astype(np.float32) for _ in range(2))
    chosen = best(cheap, count)
    dear[~chosen] = np.nan  # never scored
    found = reranked(cheap, dear, chosen)
    for row in range(queries):
        order = np.argsort(-found[row], kind="stable").tolist()
        first = sorted(range(candidates), key=lambda c: -cheap[row, c])
        listed, rest = first[:count], first[count:]
        assert order == sorted(listed, key=lambda c: -dear[row, c]) + rest
