"""Small data: as shards in a folder, on a real HTTP server, and with a tokenizer for a whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools.tokenizer import save, train
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


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A small dataset and a tokenizer, as overrides."""
    folder = tmp_path_factory.mktemp("words")
    texts = [
        [f"{WORDS[(n + c) % 11]} {WORDS[(3 * n + c) % 11]} " * (1 + (n + c) % 3) for c in range(2)] for n in range(24)
    ]
    samples = [sample(n, *captions, regions=2 + n % 4) for n, captions in enumerate(texts)]
    dataset(folder / "train", samples, per_shard=6)
    dataset(folder / "dev", samples[:6], per_shard=6)
    save(train([" ".join(WORDS)] * 9, 200, lowercase=True), folder / "tokenizer")
    return (f"data.train={folder / 'train'}", f"data.val={folder / 'dev'}", f"tokenizer={folder / 'tokenizer'}")


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
