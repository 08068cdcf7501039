"""Shards on a real HTTP server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.fileserver import FileServer, serving
from tests.distributed.remotedata import CAPTIONS, PER_SHARD, SHARDS
from tests.unit.task_making import WORDS, dataset, sample
from vlp.data import storage
from vlp.data.dataset import Dataset


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Eight shards of three samples with two captions each, and their token lengths beside the index."""
    samples = [
        sample(n, *(f"{WORDS[(n + c) % len(WORDS)]} " * (1 + (n + c) % 5) for c in range(CAPTIONS)), regions=1 + n % 4)
        for n in range(SHARDS * PER_SHARD)
    ]
    return dataset(tmp_path_factory.mktemp("data"), samples, per_shard=PER_SHARD)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between tries, small pieces, no proxy."""
    monkeypatch.setattr(storage, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(storage, "_PIECE", 5000)  # several to a shard
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(local: Dataset, quick: None) -> Iterator[FileServer]:
    with serving(Path(local.directory)) as files:
        yield files
