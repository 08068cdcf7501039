from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.shard_making import photo, texts, write_samples, write_tar
from vlp.data.arrays import read_npz, write_npz
from vlp.data.index import build_index, open_block, open_index
from vlp.data.lengths import token_lengths
from vlp.data.manifest import INDEX
from vlp.errors import DataError


class _Words:
    """Counts words, and what it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, lines: list[str]) -> list[int]:
        self.asked += len(lines)
        return [len(line.split()) for line in lines]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_samples(tmp_path / "data")
    build_index(tmp_path / "data")
    return tmp_path / "data"


def test_every_text_is_counted_once_and_not_cut(data: Path) -> None:
    words = _Words()
    lengths = token_lengths(open_index(data), words, "abc", limit=4)
    assert [column.tolist() for column in lengths.table(0)] == [[4, 4, 5], [3]]
    assert [column.tolist() for column in lengths.table(2)] == [[], []]
    assert words.asked == 6 + 3
    assert (data / INDEX / "lengths-abc" / "shard-000000.npz").is_file()
    token_lengths(open_index(data), words, "abc", limit=9)
    assert words.asked == 6 + 3
    token_lengths(open_index(data), words, "other tokenizer", limit=9)
    assert words.asked == 2 * (6 + 3)


def test_a_missing_side_file_alone_is_made_again(data: Path) -> None:
    words = _Words()
    lengths = token_lengths(open_index(data), words, "abc", limit=4)
    path = data / INDEX / "lengths-abc" / "shard-000001.npz"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match=r"shard-000001\.npz: token lengths are missing"):
        lengths.table(1)
    words.asked = 0
    token_lengths(open_index(data), words, "abc", limit=4)
    assert words.asked == 3 + 2
    assert path.read_bytes() == whole


def test_a_damaged_or_foreign_side_file_is_refused(data: Path) -> None:
    lengths = token_lengths(open_index(data), _Words(), "abc", limit=4)
    folder = data / INDEX / "lengths-abc"
    path, other = folder / "shard-000001.npz", bytes(reversed(b"0123456789abcdef0123456789abcdef"))
    write_npz(path, {**read_npz(path), "checksum": np.frombuffer(other, np.uint8)})
    with pytest.raises(DataError, match="of another state of the shard; remove the file"):
        lengths.table(1)
    path.write_bytes((folder / "shard-000000.npz").read_bytes())
    with pytest.raises(DataError, match="of another state"):
        lengths.table(1)
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match="damaged"):
        lengths.table(1)


def test_the_cache_is_used_where_the_data_cannot_be_written(data: Path, tmp_path: Path) -> None:
    # A file where the folder would stand: also a superuser cannot write there.
    (data / INDEX / "lengths-abc").write_text("")
    index = open_index(data)
    lengths = token_lengths(index, _Words(), "abc", limit=4)
    assert lengths.table(0)[0].tolist() == [4, 4, 5]
    assert (tmp_path / "cache/vlp/lengths" / index.manifest.fingerprint / "abc/shard-000000.npz").is_file()
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match="make one of them writable"):
        token_lengths(index, _Words(), "abc", limit=4)


def test_an_unreadable_text_is_as_long_as_the_limit(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", photo()), ("a.json", texts("one")), ("b.jpg", photo()), ("b.txt", b"b b")])
    build_index(tmp_path)
    path = tmp_path / "x.tar"
    path.write_bytes(path.read_bytes().replace(b'["one"]', b'["one",'))
    index = open_index(tmp_path)
    lengths = token_lengths(index, _Words(), "abc", limit=7)
    assert open_block(index, [0], "captions", lengths).tokens_E.tolist() == [7, 2]
    assert open_block(index, [0], "captions", lengths).tokens_E.dtype == np.int32
