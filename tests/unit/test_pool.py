from __future__ import annotations

import os
import signal
import time

import pytest

from data_tools.pool import Pool, Tick, usable_cpus
from vlp.errors import DataError


def _square(context: int, job: int, tick: Tick) -> int:
    tick()
    time.sleep(0.001 * (job % 3))
    return context + job * job


def _sleep(context: int, job: int, tick: Tick) -> int:
    for _ in range(10_000):
        tick()
        time.sleep(0.01)
    return job


def _fail(context: int, job: int, tick: Tick) -> int:
    if job == 3:
        raise DataError(f"job {job} is wrong")
    return _sleep(context, job, tick) if job > 3 else job


def _die(context: int, job: int, tick: Tick) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return job


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order(workers: int) -> None:
    seen: list[int] = []
    with Pool(5, workers, seen.append) as pool:
        assert list(pool.ordered(_square, range(40))) == [5 + number**2 for number in range(40)]
    assert seen[-1] == 40
    assert seen == sorted(seen)


def test_jobs_are_asked_for_as_there_is_room() -> None:
    asked = []

    def jobs() -> object:
        for number in range(100):
            asked.append(number)
            yield number

    with Pool(0, 2, lambda done: None) as pool:
        results = pool.ordered(_square, jobs())  # type: ignore[arg-type]
        next(results)
        assert len(asked) <= 10


def test_an_error_ends_the_work_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="job 3 is wrong"), Pool(0, 2, lambda done: None) as pool:
        list(pool.ordered(_fail, range(8)))
    assert time.monotonic() - start < 20


def test_a_killed_worker_is_told_in_a_sentence() -> None:
    with pytest.raises(DataError, match="a worker process was killed"), Pool(0, 2, lambda done: None) as pool:
        list(pool.ordered(_die, range(8)))


def test_there_is_a_cpu() -> None:
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)
