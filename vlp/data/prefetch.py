"""Threads that do what is wanted soon, in order; what is wanted may change at any time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any, Generic, TypeVar

J = TypeVar("J", bound=Hashable)


class Prefetcher(Generic[J]):
    """Does jobs in the background. Its threads end with their work and with the process; a fork starts its own.

    Args:
        work: does a job; a job that fails is left to whoever needs its result.
        threads: jobs that are done at a time.
    """

    def __init__(self, work: Callable[[J], None], threads: int) -> None:
        self._work = work
        self._most = threads
        self._process = -1
        self._begun: set[J] = set()
        self._waiting: deque[J] = deque()
        self._threads: list[Thread] = []

    def want(self, jobs: Sequence[J]) -> None:
        """Do these jobs, in this order, instead of those that have not begun; those that were done are not repeated."""
        if self._process != os.getpid():
            self._process, self._begun, self._threads = os.getpid(), set(), []
        self._begun &= set(jobs)
        self._waiting = deque(job for job in dict.fromkeys(jobs) if job not in self._begun)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for _ in range(min(self._most - len(self._threads), len(self._waiting))):
            # Daemons: a process that ends does not wait for downloads.
            thread = Thread(target=self._run, daemon=True, name="prefetch")
            thread.start()
            self._threads.append(thread)

    def _run(self) -> None:
        while True:
            try:
                job = self._waiting.popleft()
            except IndexError:
                return
            self._begun.add(job)
            with suppress(Exception):
                self._work(job)

    def __reduce__(self) -> tuple[type[Prefetcher[J]], tuple[Any, ...]]:
        return Prefetcher, (self._work, self._most)
