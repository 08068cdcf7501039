"""Recall against a search one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlp.errors import DataError
from vlp.metrics.recall import ranks_of_matches, recall_at_k


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[int]], list[list[bool]]]:
    """Scores with many ties; every query has a match."""
    queries, candidates = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    row = st.lists(st.integers(-2, 2), min_size=candidates, max_size=candidates)
    scores = draw(st.lists(row, min_size=queries, max_size=queries))
    match = st.lists(st.booleans(), min_size=candidates, max_size=candidates).filter(any)
    return scores, draw(st.lists(match, min_size=queries, max_size=queries))


def by_hand(scores: list[int], matches: list[bool]) -> int:
    """The rank of the best match in a list that is sorted as unkindly as the scores allow."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], matches[place]))
    return 1 + next(rank for rank, place in enumerate(order) if matches[place])


@given(tables())
def test_against_a_sorted_list(table: tuple[list[list[int]], list[list[bool]]]) -> None:
    scores, matches = torch.tensor(table[0]).float(), torch.tensor(table[1])
    ranks = [by_hand(row, match) for row, match in zip(*table, strict=True)]
    assert ranks_of_matches(scores, matches).tolist() == ranks
    for k in (1, 2, 5):
        assert recall_at_k(scores, matches, k) == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))


def test_a_constant_score_earns_nothing() -> None:
    assert recall_at_k(torch.zeros(20, 20), torch.eye(20).bool(), 10) == 0
    assert recall_at_k(torch.zeros(2, 2), torch.ones(2, 2).bool(), 1) == 1  # unless all candidates match


def test_a_score_that_is_not_a_number_earns_nothing() -> None:
    assert recall_at_k(torch.full((4, 20), float("nan")), torch.eye(20)[:4].bool(), 10) == 0


def test_a_query_without_a_match_is_refused() -> None:
    matches = torch.eye(3).bool()
    matches[1] = False
    with pytest.raises(DataError, match=r"^query 1 has no match"):
        recall_at_k(torch.zeros(3, 3), matches, 1)
