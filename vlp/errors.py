"""Errors meant for the person at the keyboard.

Each message is one sentence that says what is wrong, where (file, key, value) and what to do. The command line
prints the sentence without a traceback; `exit_code` tells a wrong use (2) from a failed run (1).
"""

from collections.abc import Iterable
from difflib import get_close_matches


class VlpError(Exception):
    """Base of all errors that a user can mend."""

    exit_code = 1


class ConfigError(VlpError):
    """A config, an override or a command's arguments are wrong."""

    exit_code = 2


class DataError(VlpError):
    """Shards, an index or a sample are not what they must be."""


class CheckpointError(VlpError):
    """A checkpoint or a model directory cannot be used."""


class TrainingError(VlpError):
    """A run cannot go on."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: ` (did you mean 'x'?)`, or the known names, or nothing."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(names)})" if names else ""
