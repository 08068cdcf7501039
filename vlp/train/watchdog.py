"""A rank that waits for ever: another has died or hangs, and no collective will ever return."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from vlp.distributed import Board, is_broken
from vlp.errors import TrainingError

EXIT_CODE = 1
_PERIOD = 10.0
"""Seconds between two looks at the clock, each of which tells the other ranks that this one lives."""
_PERIODS_READ = 3
"""Periods after which a rank that has written nothing is taken for dead."""
_GAVE_UP = "gave up"
"""Written last by a rank that ends itself: it is not the one to blame."""


class Watchdog:
    """Ends the process if nothing is reported for too long, and tells what was going on when a collective fails.

    Use as a context manager, which turns the error of a collective whose partner is gone into a TrainingError.

    A collective that waits for a dead rank cannot be interrupted from Python, and how long a backend waits differs
    (gloo raises, NCCL may abort or hang), so a thread of its own says what was going on and ends the process.

    Args:
        minutes: longest between two reports.
        rank: told in the message.
        board: where ranks read of each other what they do; None if there are no others.
        end: called with the message; by default prints it and exits with 1.
    """

    def __init__(
        self, minutes: float, rank: int, board: Board | None = None, end: Callable[[str], None] | None = None
    ) -> None:
        self._seconds = minutes * 60
        self._rank = rank
        self._board = board
        self._end = end or _exit
        self._doing = "starting"
        self._since = time.monotonic()
        self._period = min(_PERIOD, self._seconds / 8)
        self._beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @property
    def doing(self) -> str:
        """What was reported last."""
        return self._doing

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
        if isinstance(error, RuntimeError) and is_broken(error):
            reason = re.sub(r"^\[[^]]*\] ", "", str(error)).split(". ")[0].splitlines()[0]  # without the line in gloo
            raise TrainingError(
                f"rank {self._rank}: {self._doing}: a collective failed ({reason}), most likely because another rank "
                "died: look at what the ranks said last, then resume with --resume"
            ) from error

    def _watch(self) -> None:
        while not self._stopped.wait(self._period):
            self._beat(self._doing)
            since = self._since
            if time.monotonic() - since <= self._seconds:
                continue
            others = self._others()
            if self._since == since and not self._stopped.is_set():
                self._beat(_GAVE_UP)
                self._end(
                    f"rank {self._rank}: {self._doing} has taken {(time.monotonic() - since) / 60:.3g} minutes, more "
                    f"than guard.step_minutes ({self._seconds / 60:.3g}): {others}; look at what the ranks said last, "
                    "then resume with --resume"
                )
                return

    def _beat(self, doing: str) -> None:
        if self._board is None:
            return
        self._beats += 1
        with suppress(RuntimeError):  # who keeps the board may be gone; the collectives will tell
            self._board.post(f"{self._beats} {doing}")

    def _others(self) -> str:
        """Which rank is to blame, as far as the board tells. Takes some periods, in which this rank goes on beating."""
        found: list[tuple[dict[int, str], dict[int, str]]] = []

        def read() -> None:
            with suppress(RuntimeError):
                found.append(self._read_twice())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        for _ in range(2 * _PERIODS_READ):
            reader.join(self._period)
            self._beat(self._doing)
        if not found:
            return "another rank has died or hangs, probably rank 0, which keeps the board and no longer answers"
        before, after = ({rank: said for rank, said in board.items() if rank != self._rank} for board in found[0])
        waiting = {rank: said.partition(" ")[2] for rank, said in after.items() if not said.endswith(_GAVE_UP)}
        silent = [rank for rank in waiting if before.get(rank) == after[rank]]
        elsewhere = [rank for rank in waiting if rank not in silent and waiting[rank] != self._doing]
        for ranks, state in ((silent, "no longer answers and was last heard in"), (elsewhere, "is in")):
            if ranks:
                more = f" (and {len(ranks) - 1} more)" if len(ranks) > 1 else ""
                return f"rank {ranks[0]} {state} {waiting[ranks[0]]}{more}"
        if not waiting:
            return "its data, its disk or its device may hang"
        return f"all {len(waiting) + 1} ranks are in it, so the network between them, the disk or a device may hang"

    def _read_twice(self) -> tuple[dict[int, str], dict[int, str]]:
        """The board now, and when every rank that lives has written again."""
        if self._board is None:
            return {}, {}
        before = self._board.read()
        time.sleep(_PERIODS_READ * self._period)
        return before, self._board.read()


def _exit(message: str) -> None:
    print(f"vlp: {message}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
