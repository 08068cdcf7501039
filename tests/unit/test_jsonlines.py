"""Lines of JSON that are whole, also on a full disk and after a kill."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vlp.train.jsonlines import JsonLines, read_records


@contextmanager
def room(size: int) -> Iterator[None]:
    """Within it no file grows beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = JsonLines(path, 0)
    lines.append({"step": 1, "loss": 0.5})
    before = path.read_text()
    with room(len(before) + 9), pytest.raises(OSError, match="File too large") as caught:
        lines.append({"step": 2, "loss": 0.25})
    assert caught.value.filename == str(path)
    assert path.read_text() == before
    lines.append({"step": 2, "loss": 0.25})
    lines.close()
    assert steps(path) == [1, 2]


def test_a_long_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path, sizes, write = tmp_path / "a.jsonl", [], os.write
    monkeypatch.setattr(os, "write", lambda file, data: sizes.append(len(data)) or write(file, data))
    lines = JsonLines(path, 0)
    lines.append({"step": 1, "examples": ["a long name"] * 5000})
    assert sizes == [path.stat().st_size]
    lines.close()


@pytest.mark.parametrize(
    "end", ['{"step": 3, "lo', '{"step": 3', '{"step": 3}', "\x00\x00\x00", "\x00\n", "[]\n", "{}\n"]
)
def test_what_is_no_whole_line_goes(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + end)
    seen: list[int] = []
    JsonLines(path, 5, lambda record: seen.append(record["step"])).close()
    assert steps(path) == seen == [1, 2]


def test_lines_of_later_steps_go(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 2, 3, 4)))
    JsonLines(path, 2).close()
    assert steps(path) == [1, 2, 2]
    assert [record["step"] for record in read_records(path)] == [1, 2, 2]
    assert list(read_records(tmp_path / "none")) == []
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
