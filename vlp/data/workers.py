"""Numbers in, made things out, in order: here or in worker processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from vlp.data.parcels import Parcel, Pool, forget
from vlp.errors import DataError, VlpError

T = TypeVar("T")
_YOUNG = 50_000
"""Objects that are made before a worker looks for garbage among them. A micro-batch is some thousands, none of them in
a circle, and Python would look through them after each 700."""
_PATIENCE = 2.0
"""Seconds that workers have to end in. Nothing is lost with the steps in their hands."""


class _Failure:
    """An error for the user on its way to the parent: torch would wrap its sentence in a traceback."""

    def __init__(self, error: VlpError) -> None:
        self._kind, self._sentence = type(error), str(error)

    def error(self) -> VlpError:
        error = self._kind.__new__(self._kind)  # not __init__: a subclass may want other arguments
        error.args = (self._sentence,)
        return error


class _Made(TorchDataset[Any], Generic[T]):
    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._pool = Pool()

    def __getitem__(self, number: int) -> Parcel | _Failure:
        try:
            return Parcel.of(self._make(number), self._pool)
        except VlpError as error:
            return _Failure(error)


def in_order(make: Callable[[int], T], numbers: range, *, workers: int, pin_memory: bool = False) -> Iterator[T]:
    """`make(number)` for each number, in order, made ahead by worker processes if there are any.

    Closing the iterator ends the workers.

    Raises:
        VlpError: the one that `make` raised, with its sentence.
        DataError: a worker died.
    """
    if not workers:
        pool = Pool()
        for number in numbers:
            yield Parcel.of(make(number), pool).pin_memory().open() if pin_memory else make(number)
        return
    # A forked worker has the tokenizer's threads no more; saying so here keeps the library from warning of it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    forks = "fork" in multiprocessing.get_all_start_methods()
    parcels: DataLoader[Any] = DataLoader(
        _Made(make),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=begin,
        pin_memory=pin_memory,
        multiprocessing_context="fork" if forks else None,
    )
    made = _start(parcels)
    try:
        for parcel in made:
            if isinstance(parcel, _Failure):
                raise parcel.error()
            yield parcel.open()
    except (RuntimeError, OSError, EOFError) as error:
        # Torch says that a worker is gone, or the socket to it breaks first. "Caught": an error inside a worker's code.
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        if str(error).startswith("Caught"):
            raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"a loader worker died ({reason}): memory or /dev/shm may be full, so try fewer data.workers"
        ) from error
    finally:
        # Torch does this when the iterator is collected, but a traceback that someone keeps would hold on to it.
        _end(made)


def _start(parcels: DataLoader[Any]) -> Any:
    """The loader's iterator. Torch's handler, which raises the death of a worker in the midst of whatever the parent
    does, is taken back: the death is found when the next step is asked for, and told in a sentence."""
    # Workers inherit what is held back, and keep to it: a signal is the trainer's business, which saves first and then
    # ends them. So none dies with a traceback, not even one that is just being started.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        if threading.current_thread() is not threading.main_thread():
            return iter(parcels)
        before = signal.getsignal(signal.SIGCHLD)
        made = iter(parcels)
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
        return made
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _end(made: Any) -> None:
    """End the workers: each when its step is made, but after `_PATIENCE` in any case.

    One that waits for remote data would hold up the end for as long (it ignores the SIGTERM that torch sends it).
    """
    workers = list(made._workers)

    def kill() -> None:
        for worker in workers:
            worker.kill()

    impatient = threading.Timer(_PATIENCE, kill)
    impatient.start()
    try:
        made._shutdown_workers()
    finally:
        impatient.cancel()
        forget({worker.pid for worker in workers})


def _same(value: Any) -> Any:
    return value


def begin(worker: int = 0) -> None:
    """Make this process a worker (torch tells its number): one thread, and no search for garbage among what was
    imported, which takes 120 ms."""
    torch.set_num_threads(1)
    gc.freeze()
    gc.set_threshold(_YOUNG)
