"""What a folder holds, and a process that dies while it writes one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """Nothing that handles errors catches it."""


class Renames:
    """In place of `os.replace`: when none is left, the next raises `Killed` as if the process died there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int = sys.maxsize) -> None:
        self.left = left
        self._replace = os.replace
        monkeypatch.setattr(os, "replace", self)

    def __call__(self, *given: Any) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self._replace(*given)
