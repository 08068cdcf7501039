"""Lines of text files, of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from vlp.errors import DataError

_MAX_LINE = 16 << 20
"""Bytes. More is no line of text, and would be held in memory whole."""

Bad = Callable[[int, str], None]


def text_lines(path: Path, *, blank: bool = False, bad: Bad | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers from 1, without the line feed (and a return before it).

    Args:
        blank: give blank lines too.
        bad: called with the number of a line that cannot be read, and why; such a line is then left out.
    Raises:
        DataError: without `bad`, a line that is not UTF-8 or longer than 16 MiB.
    """
    # Binary lines end at LF alone: text mode would also end them at a lone CR inside a caption.
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(_MAX_LINE):
            number += 1
            reason = ""
            if len(line) == _MAX_LINE and not line.endswith(b"\n"):
                reason = f"is longer than {_MAX_LINE >> 20} MiB"
                while line and not line.endswith(b"\n"):
                    line = lines.readline(_MAX_LINE)
            else:
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    reason = "is not UTF-8"
            if not reason:
                text = text.removesuffix("\n").removesuffix("\r")
                if blank or text.strip():
                    yield number, text
            elif bad is not None:
                bad(number, reason)
            else:
                raise DataError(f"{path} line {number}: {reason}; convert the file first")
