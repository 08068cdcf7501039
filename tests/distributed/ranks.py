"""Run a function on N real ranks over gloo.

    results = run_on_ranks(2, function, argument=1)      # one result per rank, in order

`function(world, **arguments)` stands at the top of a test module, gets a `vlp.distributed.World`, and takes and
returns what pickle can carry. Processes and their process group live as long as the pytest session, one pool per world
size. Importing torch and DeepSpeed takes seconds, so it is done once, in a server that ranks are forked from.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

_PRELOAD = ["tests.distributed.preload"]
_pools: dict[int, _Pool] = {}


class RankDied(RuntimeError):
    """A rank's process ended."""


class RemoteError(Exception):
    """The traceback of a rank, as text; the cause of the exception that `run_on_ranks` raises."""


def run_on_ranks(ranks: int, function: Callable[..., Any], *, timeout: float = 120, **arguments: Any) -> list[Any]:
    """Call `function(world, **arguments)` on each of `ranks` ranks at once.

    Raises:
        Exception: the first rank's that failed, with its traceback as the cause.
        TimeoutError: a rank hung; the pool is thrown away.
    """
    pool = _pools.get(ranks)
    if pool is None or not pool.alive():
        pool = _pools[ranks] = _Pool(ranks)
    try:
        return pool.run(function, timeout, arguments)
    finally:
        if not pool.usable:
            pool.close()
            _pools.pop(ranks, None)


class _Pool:
    def __init__(self, ranks: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.usable = True
        self._ends: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, ranks, port, there), daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)

    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def run(self, function: Callable[..., Any], timeout: float, arguments: dict[str, Any]) -> list[Any]:
        self.usable = False  # until all ranks have answered
        for end in self._ends:
            end.send((function.__module__, function.__qualname__, arguments))
        answers: dict[int, tuple[Any, BaseException | None, str]] = {}
        deadline = time.monotonic() + timeout
        waiting = dict(zip(self._ends, range(len(self._ends)), strict=True))
        while waiting and time.monotonic() < deadline:
            for end in wait(list(waiting), timeout=max(0.0, deadline - time.monotonic())):
                rank = waiting.pop(end)
                answers[rank] = _answer(end, rank)
                if answers[rank][1] is not None:  # the others may wait for it in a collective: not for long
                    deadline = min(deadline, time.monotonic() + 5)
        for rank in sorted(answers):
            _, error, trace = answers[rank]
            if error is not None:
                self.usable = not waiting and not any(isinstance(found, RankDied) for _, found, _ in answers.values())
                raise error from RemoteError(f"\nrank {rank}:\n{trace}")
        if waiting:
            raise TimeoutError(f"ranks {sorted(waiting.values())} of {len(self._ends)} hung in {function.__qualname__}")
        self.usable = True
        return [answers[rank][0] for rank in range(len(self._ends))]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(5)


def _answer(end: Connection, rank: int) -> tuple[Any, BaseException | None, str]:
    try:
        result, error, trace = end.recv()
        return result, error, trace
    except (EOFError, ConnectionError):
        return None, RankDied(f"rank {rank} died"), ""


def _serve(rank: int, ranks: int, port: int, end: Connection) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    from vlp.distributed import start, stop

    torch.set_num_threads(1)
    world = start(timeout_minutes=2)
    while True:
        try:
            module, name, arguments = end.recv()
        except EOFError:  # pytest has ended
            break
        try:
            result = getattr(importlib.import_module(module), name)(world, **arguments)
            end.send((result, None, ""))
        except Exception as error:
            end.send((None, _portable(error), traceback.format_exc()))
        gc.collect()  # engines hold cycles
    stop()


def _portable(error: Exception) -> Exception:
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@atexit.register
def close_pools() -> None:
    for pool in _pools.values():
        pool.close()
    _pools.clear()
