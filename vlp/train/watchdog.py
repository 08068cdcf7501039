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
_GAVE_UP = "gave up on "
"""Written by a rank that ends itself before what it was doing."""


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
        self._gave_up = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="heart", daemon=True)

    def report(self, doing: str) -> None:
        """Say what the process does next, as in `step 12`."""
        self._doing, self._since = doing, time.monotonic()

    def __enter__(self) -> Watchdog:
        self.report(self._doing)
        self._thread.start()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._heart.join(timeout=1)
        if isinstance(error, RuntimeError) and is_broken(error):
            reason = re.sub(r"^\[[^]]*\] ", "", str(error)).split(". ")[0].splitlines()[0]  # without the line in gloo
            raise TrainingError(
                f"rank {self._rank}: {self._doing}: a collective failed ({reason}), most likely because another rank "
                "died: look at what the ranks said last, then resume with --resume"
            ) from error

    def _watch(self) -> None:
        while not self._stopped.wait(self._period):
            since = self._since
            if time.monotonic() - since <= self._seconds:
                continue
            others = self._others()
            if self._since == since and not self._stopped.is_set():
                self._gave_up = True
                time.sleep(1.5 * self._period)  # the others must hear of it: this rank is not the one that hangs
                self._end(
                    f"rank {self._rank}: {self._doing} has taken {(time.monotonic() - since) / 60:.3g} minutes, more "
                    f"than guard.step_minutes ({self._seconds / 60:.3g}): {others}; look at what the ranks said last, "
                    "then resume with --resume"
                )
                return

    def _beat(self) -> None:
        """Tell the other ranks what this one does. A thread of its own: it waits where who keeps the board hangs."""
        beats = 0
        while self._board is not None and not self._stopped.wait(self._period):
            beats += 1
            with suppress(RuntimeError):  # who keeps the board may be gone; the collectives will tell
                self._board.post(f"{beats} {_GAVE_UP if self._gave_up else ''}{self._doing}")

    def _others(self) -> str:
        """Which rank is to blame, as far as the board tells; takes some periods."""
        found: list[tuple[dict[int, str], dict[int, str]]] = []

        def read() -> None:
            with suppress(RuntimeError):
                found.append(self._read_twice())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        reader.join(2 * _PERIODS_READ * self._period)
        if not found:
            return "another rank has died or hangs, probably rank 0, which keeps the board and no longer answers"
        before, after = ({rank: said for rank, said in board.items() if rank != self._rank} for board in found[0])
        doing = {rank: said.partition(" ")[2].removeprefix(_GAVE_UP) for rank, said in after.items()}
        # A rank that gave up is not silent because it hangs, but it may be the one that was elsewhere.
        silent = [rank for rank, said in after.items() if before.get(rank) == said and f" {_GAVE_UP}" not in said]
        elsewhere = [rank for rank in after if rank not in silent and doing[rank] != self._doing]
        for ranks, state in ((silent, "no longer answers and was last heard in"), (elsewhere, "is in")):
            if ranks:
                more = f" (and {len(ranks) - 1} more)" if len(ranks) > 1 else ""
                return f"rank {ranks[0]} {state} {doing[ranks[0]]}{more}"
        if not after:
            return "its data, its disk or its device may hang"
        return f"all {len(after) + 1} ranks are in it, so the network between them, the disk or a device may hang"

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
