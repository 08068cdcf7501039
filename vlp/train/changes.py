"""What has changed between the run that wrote a checkpoint and the one that resumes from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Changes = dict[str, tuple[Any, Any]]
"""By the key's path, the value before and the value now."""

ABSENT = "absent"
"""Stands for the value of a key that is not there."""


def differences(before: Any, now: Any, path: str = "") -> Changes:
    """The keys in which two trees of plain data differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found: Changes = {}
        for key in [*before, *(key for key in now if key not in before)]:
            below = f"{path}.{key}".removeprefix(".")
            found |= differences(before.get(key, ABSENT), now.get(key, ABSENT), below)
        return found
    return {} if before == now else {path: (before, now)}


def listed(changes: Changes, most: int = 5) -> str:
    """Changes in words, the first few of them."""
    said = [f"{path} ({_short(before)}, now {_short(now)})" for path, (before, now) in changes.items()]
    more = f" and {len(said) - most} more" if len(said) > most else ""
    return ", ".join(said[:most]) + more


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
