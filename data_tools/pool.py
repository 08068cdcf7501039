"""Work in processes: jobs go out, results come back in order, and nothing outlives the command."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import RawArray
from types import TracebackType
from typing import Any, Generic, TypeVar

from vlp.errors import DataError

C = TypeVar("C")
J = TypeVar("J")
R = TypeVar("R")

Tick = Callable[[], None]
"""Called by the work once per image or so: it moves the bar, and ends the work when the command is over."""

_AHEAD = 4
"""Jobs per process that are out at a time: enough that a slow one holds up nobody, few enough for memory."""
_SLOTS = 4096
_GLANCE = 0.2
"""Seconds between two looks at how far the processes are."""


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes(wanted: int | None, jobs: int) -> int:
    """How many processes so many jobs get: as many as wanted or, where nothing is said, as there are usable CPUs."""
    return max(1, min(wanted or usable_cpus(), jobs))


class Pool(Generic[C]):
    """Processes that share a context; with one worker all is done in this process.

    Leaving the `with` ends them: at once if by an error.
    """

    def __init__(self, context: C, workers: int, watch: Callable[[int], None]) -> None:
        """`watch` is told from time to time how many ticks there were."""
        self._context = context
        self._workers = workers
        self._watch = watch
        self._ticks = 0
        self._shared: Any = RawArray("q", _SLOTS + 1)  # the last one says: stop
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            self._pool = ProcessPoolExecutor(workers, initializer=_start, initargs=(context, self._shared))
            self._pool.submit(os.getpid)  # forks them all now, before there are threads

    def ordered(self, work: Callable[[C, J, Tick], R], jobs: Iterable[J]) -> Iterator[R]:
        """`work(context, job, tick)` of each job, in order. Jobs are asked for as there is room for them.

        Raises:
            DataError: a process died.
        """
        if self._pool is None:
            for job in jobs:
                yield work(self._context, job, self._tick)
            return
        waiting: deque[Future[R]] = deque()
        for job in jobs:
            waiting.append(self._pool.submit(_call, work, job))
            if len(waiting) >= self._workers * _AHEAD:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def __enter__(self) -> Pool[C]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._shared[_SLOTS] = kind is not None
            self._pool.shutdown(cancel_futures=True)

    def _result(self, future: Future[R]) -> R:
        while not wait([future], timeout=_GLANCE).done:
            self._watch(sum(self._shared[:_SLOTS]))
        self._watch(sum(self._shared[:_SLOTS]))
        try:
            return future.result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed (is memory full?); "
                "say the same command again to go on, with fewer --workers"
            ) from None

    def _tick(self) -> None:
        self._ticks += 1
        self._watch(self._ticks)


def mapped(
    work: Callable[[J], R], jobs: Sequence[J], *, workers: int | None, watch: Callable[[int], None]
) -> Iterator[R]:
    """`map(work, jobs)` in processes; `watch` is told how many jobs are done.

    Raises:
        DataError: a process died.
    """
    with Pool(work, processes(workers, len(jobs)), watch) as pool:
        yield from pool.ordered(_one, jobs)


def _one(work: Callable[[J], R], job: J, tick: Tick) -> R:
    result = work(job)
    tick()
    return result


class _Stopped(Exception):
    """The command is over; nobody waits for this result."""


_context: Any = None
_shared: Any = None


def _start(context: Any, shared: Any) -> None:
    """Make this process a worker."""
    global _context, _shared
    _context, _shared = context, shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business: it says stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed says nothing, and a worker would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(work: Callable[[Any, Any, Tick], R], job: Any) -> R:
    return work(_context, job, _tick)


def _tick() -> None:
    # Each process has a slot of its own: a lock would stay locked if its holder were killed.
    _shared[os.getpid() % _SLOTS] += 1
    if _shared[_SLOTS]:
        raise _Stopped
