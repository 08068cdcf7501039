"""A rank that waits for ever: another has died or hangs, and no collective will ever return."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

EXIT_CODE = 1


class Watchdog:
    """Ends the process if nothing is reported for too long. Use as a context manager.

    A collective that waits for a dead rank cannot be interrupted from Python, and how long a backend waits differs
    (gloo raises, NCCL may abort or hang), so a thread of its own says what was going on and ends the process.

    Args:
        minutes: longest between two reports.
        rank: told in the message.
        end: called with the message; by default prints it and exits with 1.
    """

    def __init__(self, minutes: float, rank: int, end: Callable[[str], None] | None = None) -> None:
        self._seconds = minutes * 60
        self._rank = rank
        self._end = end or _exit
        self._doing = "starting"
        self._since = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def report(self, doing: str) -> None:
        """Say what the process does next, as in `step 12`."""
        self._doing, self._since = doing, time.monotonic()

    def __enter__(self) -> Watchdog:
        self.report(self._doing)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._seconds / 4)):
            waited = time.monotonic() - self._since
            if waited > self._seconds:
                self._end(
                    f"rank {self._rank}: {self._doing} has taken {waited / 60:.3g} minutes, more than "
                    f"guard.step_minutes ({self._seconds / 60:.3g}): another rank has died or hangs; look at what the "
                    "other ranks said last, then resume with --resume"
                )
                return


def _exit(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
