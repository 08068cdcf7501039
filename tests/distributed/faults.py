"""Faults for a real run: a process killed, a disk that fills up or a signal, at any call that the run makes.

A rank counts the calls (of Python and of C) that it makes while it does one thing, such as `the checkpoint after step
6`, and strikes at the n-th. What a run does when is told by its watchdog's reports.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from unittest import mock

import pytest

from tests.distributed.ranks import RankDied, run_on_ranks
from vlp.distributed import World, share
from vlp.errors import VlpError
from vlp.job import train
from vlp.train.watchdog import Watchdog

Kind = Literal["kill one", "kill all", "terminate one", "terminate all", "full disk"]
CALLS = ("call", "c_call")
SPEEDS = {"examples_per_second", "tokens_per_second", "data_wait", "step_seconds", "memory_gib"}
"""What of a step's numbers a clock says."""


@dataclass(frozen=True)
class Fault:
    """What strikes, where and when."""

    kind: Kind
    doing: str
    """What the run does at that time, in its watchdog's words."""
    call: int
    """The number of the call, from 1; if there are fewer it strikes at the end."""
    rank: int
    room: int = 0
    """Bytes that a file may grow to on a full disk."""


class Calls:
    """Counts the calls of each thing that a run does, and strikes at one of them."""

    def __init__(self, fault: Fault | None, strike: Callable[[], None]) -> None:
        self.counts: dict[str, int] = {}
        self._fault = fault
        self._strike = strike
        self._doing = ""

    def report(self, doing: str) -> None:
        sys.setprofile(None)
        if self._fault is not None and self._doing == self._fault.doing:
            self._struck()
        self._doing = doing
        self.counts[doing] = 0
        if self._fault is None or doing == self._fault.doing:
            sys.setprofile(self._count)

    def _count(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in CALLS:
            return
        self.counts[self._doing] += 1
        if self._fault is not None and self.counts[self._doing] == self._fault.call:
            sys.setprofile(None)
            self._struck()

    def _struck(self) -> None:
        self._fault = None
        self._strike()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Within it the reports of every watchdog come here too."""
        reported = Watchdog.report

        def report(watchdog: Watchdog, doing: str) -> None:
            reported(watchdog, doing)
            self.report(doing)

        with mock.patch.object(Watchdog, "report", report):
            try:
                yield
            finally:
                self.report("ended")
                sys.setprofile(None)


def room(size: int | None) -> None:
    """Let no file of this process grow beyond so many bytes, as on a disk that is full; None lifts that again."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size is None else size, most))


def strike(fault: Fault, pids: list[int]) -> None:
    """Do what the fault says to this process, or to all."""
    own = os.getpid()
    if fault.kind == "full disk":
        room(fault.room)
        return
    number = signal.SIGKILL if fault.kind.startswith("kill") else signal.SIGTERM
    others = [pid for pid in pids if pid != own] if fault.kind.endswith("all") else []
    for pid in [*others, own]:
        os.kill(pid, number)


def run_job(
    world: World, config: str, overrides: list[str], fault: Fault | None = None, *, resume: bool = False
) -> dict[str, Any]:
    """A run on this rank, struck by a fault if one is given; what it said, and how many calls each of its doings took.

    A rank that fails ends its process, as a real one does; its last words are in `ended-<rank>` beside the run.
    """
    pids = share(os.getpid(), world)
    mine = fault if fault is not None and fault.rank == world.rank else None
    calls = Calls(mine, lambda: strike(fault, pids) if fault is not None else None)
    said = StringIO()
    try:
        with redirect_stdout(said), calls.counted():
            outcome = train(config, overrides, "pretrain", resume=resume)
    except (VlpError, OSError, RuntimeError) as error:
        if fault is None:
            raise
        room(None)
        directory = next(o.partition("=")[2] for o in overrides if o.startswith("run.dir="))
        Path(directory).with_name(f"ended-{world.rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    finally:
        room(None)
    return {"said": said.getvalue(), "finished": outcome.finished, "calls": calls.counts}


def tiny_run(words: tuple[str, ...], directory: Path, stage: int, precision: str, **keys: object) -> dict[str, Any]:
    """A tiny run with all objectives and a running mean, as `run_job` takes it.

    Args:
        words: overrides that name the data.
        keys: more overrides.
    """
    overrides = [
        *words,
        f"run.dir={directory}",
        f"precision={precision}",
        f"deepspeed={f'zero{stage}' if stage else 'null'}",
        "model.text.layer={width: 16, heads: 2, ffn: 32}",
        "batch={size: 8, micro_tokens: 60}",
        "ema={decay: 0.9}",
        "log.tensorboard=false",
        *(f"{key}={value}" for key, value in keys.items()),
    ]
    return {"config": "uniter_tiny", "overrides": overrides}


def curve(directory: Path, without: Collection[str] = ()) -> list[dict[str, Any]]:
    """Every line of a run's numbers but what a clock says, and `without` some more; half a line is an error."""
    text = (directory / "metrics.jsonl").read_text()
    assert text.endswith("\n") or not text
    records = map(json.loads, text.splitlines())
    left_out = SPEEDS.union(without)
    return [{name: value for name, value in record.items() if name not in left_out} for record in records]


def struck(ranks: int, run: dict[str, Any], fault: Fault) -> list[str]:
    """Start a run that a fault strikes; what its ranks said at their end, if they could."""
    directory = Path(next(o for o in run["overrides"] if o.startswith("run.dir=")).partition("=")[2])
    expected: AbstractContextManager[Any] = nullcontext()  # a signal ends a run in order
    if fault.kind.startswith("kill"):
        expected = pytest.raises(RankDied)
    elif fault.kind == "full disk":  # in vain where nothing is written any more
        expected = suppress(RankDied)
    with expected:
        run_on_ranks(ranks, run_job, **run, fault=fault)
    return [path.read_text() for path in sorted(directory.parent.glob("ended-*"))]
