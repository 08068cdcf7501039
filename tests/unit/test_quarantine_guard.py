"""When a run gives up on its data."""

from __future__ import annotations

import pytest

from vlp.errors import DataError
from vlp.train.quarantine import QuarantineGuard


def bad(key: object, shard: str = "a.tar") -> dict[str, str]:
    return {"data": "shards/x", "shard": shard, "key": str(key), "member": "jpg", "error": "does not decode"}


def test_a_few_bad_samples_among_the_first_are_no_rate() -> None:
    guard = QuarantineGuard(0.01)
    for key in range(9):
        guard.add(20, [bad(key)])
        guard.check()
    guard.add(20, [bad(3), bad(8)])  # the same samples again
    guard.check()
    guard.add(0, [bad("the tenth")])
    with pytest.raises(DataError):
        guard.check()


def test_one_bad_sample_counts_once_a_thousand_examples_were_seen() -> None:
    guard = QuarantineGuard(0.01)
    guard.add(979, [bad(0)] * 20)
    guard.check()
    guard.add(1, [])
    with pytest.raises(DataError, match=r"^2\.0% of the examples seen so far \(20 of 1,000\)"):
        guard.check()


def test_a_rate_below_the_limit_goes_on() -> None:
    guard = QuarantineGuard(0.01)
    for key in range(100):
        guard.add(99, [bad(key)])
        guard.check()


def test_the_sentence_names_the_worst_shard_and_the_remedy() -> None:
    guard = QuarantineGuard(0.25)
    guard.add(10, [*(bad(key) for key in range(4)), *(bad(key, "b.tar") for key in range(7)), bad(0), bad(1)])
    told = r"^56\.5% of .* \(13 of 23\) .*data\.quarantine_limit allows 25\.0%.*\(7 of 11\) are in shards/x/b\.tar"
    with pytest.raises(DataError, match=told + r".*quarantine\.jsonl.*`vlp-data verify shards/x --repair OUT`$"):
        guard.check()


def test_the_ends_of_the_range() -> None:
    none, any_ = QuarantineGuard(0), QuarantineGuard(1)
    none.add(1, [])
    none.check()
    for guard in (none, any_):
        guard.add(0, [bad(key) for key in range(2000)])
    any_.check()
    with pytest.raises(DataError):
        none.check()
    strict = QuarantineGuard(0)
    strict.add(100_000, [bad(0)])
    with pytest.raises(DataError):
        strict.check()
