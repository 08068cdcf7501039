from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.importers import textfile
from data_tools.importers.textfile import text_lines
from vlp.errors import DataError


def test_lines_end_at_a_line_feed_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffmột\r\n\n \t\nb\rc\u2028d\nlast".encode())
    assert list(text_lines(path)) == [(1, "một"), (4, "b\rc\u2028d"), (5, "last")]
    assert [number for number, _ in text_lines(path, blank=True)] == [1, 2, 3, 4, 5]


def test_a_bad_line_is_refused_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "_MAX_LINE", 1 << 20)
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\n\xff\n" + b"x" * (5 << 20) + b"\nb")
    with pytest.raises(DataError, match=r"x\.txt line 2: is not UTF-8; convert the file first"):
        list(text_lines(path))
    bad: list[tuple[int, str]] = []
    assert list(text_lines(path, bad=lambda *why: bad.append(why))) == [(1, "a"), (4, "b")]
    assert bad == [(2, "is not UTF-8"), (3, "is longer than 1 MiB")]
