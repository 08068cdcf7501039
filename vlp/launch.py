"""`--nproc N`: start N ranks of a command on this machine, and end them together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from vlp.affinity import share_of
from vlp.errors import ConfigError

GRACE_SECONDS = 15.0
"""How long the other ranks may take to end by themselves after one has failed."""
_POLL_SECONDS = 0.05


def launch(arguments: Sequence[str], nproc: int, *, grace: float = GRACE_SECONDS) -> int:
    """Run `python -m vlp <arguments>` as `nproc` ranks that find each other.

    Rank 0 has the terminal. What another rank says on standard error is shown only if that rank fails first and rank 0
    has not said the same, so a mistake that all ranks see is printed once. SIGINT, SIGTERM and SIGUSR1 are passed on.

    Returns:
        0, or the exit code of the rank that failed first (128 + number if a signal ended it).
    Raises:
        ConfigError: nproc is below 1.
    """
    if nproc < 1:
        raise ConfigError(f"--nproc {nproc} is not right, it should be at least 1")
    with tempfile.TemporaryDirectory(prefix="vlp-launch-") as folder:
        ranks = _Ranks(Path(folder))
        try:
            with _forwarding(ranks.signal):
                ranks.start([sys.executable, "-m", "vlp", *arguments], nproc)
                first = ranks.wait()
            if first is None:
                return 0
            ranks.end(grace)
            ranks.explain(first)
            return ranks.code(first)
        finally:
            ranks.end(0.0)


class _Ranks:
    """The processes of a run, and where their standard error went."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._tee: threading.Thread | None = None

    def start(self, command: Sequence[str], nproc: int) -> None:
        port = _free_port()
        for rank in range(nproc):
            share = share_of(rank, nproc)
            environment = _environment(rank, nproc, port, share.threads)
            with open(self._said(rank), "wb") as said:
                # A session of its own: a Ctrl-C then reaches the ranks once, through `signal`, not twice.
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=None if rank == 0 else subprocess.DEVNULL,
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                    stderr=subprocess.PIPE if rank == 0 else said,
                    start_new_session=True,
                    preexec_fn=partial(_in_child, share.cores) if sys.platform == "linux" else None,
                )
            self._processes.append(process)
        self._tee = threading.Thread(target=self._copy, daemon=True)
        self._tee.start()

    def _copy(self) -> None:
        """Rank 0's standard error, to the terminal and to a file that `explain` compares with."""
        pipe = self._processes[0].stderr
        assert pipe is not None
        with open(self._said(0), "wb") as said:
            while part := os.read(pipe.fileno(), 65536):
                said.write(part)
                said.flush()
                sys.stderr.buffer.write(part)
                sys.stderr.buffer.flush()

    def _said(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}"

    def wait(self) -> int | None:
        """Until all have ended well (None), or the first has failed (its rank)."""
        while True:
            codes = [process.poll() for process in self._processes]
            failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
            if failed:
                return failed[0]
            if all(code == 0 for code in codes):
                return None
            time.sleep(_POLL_SECONDS)

    def end(self, grace: float) -> None:
        """Let the ranks end by themselves for a while, then terminate, then kill."""
        for number, seconds in ((None, grace), (signal.SIGTERM, grace / 3), (signal.SIGKILL, 10.0)):
            if number is not None:
                self.signal(number)
            deadline = time.monotonic() + seconds
            while self._alive() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        if self._tee is not None:
            self._tee.join(timeout=1.0)

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self._processes if process.poll() is None]

    def signal(self, number: int) -> None:
        for process in self._alive():
            process.send_signal(number)

    def explain(self, rank: int) -> None:
        """Print what a rank other than 0 said before it failed, unless rank 0 said it too or all just stopped."""
        said = self._said(rank).read_text(encoding="utf-8", errors="replace").strip()
        shown = self._said(0).read_text(encoding="utf-8", errors="replace")
        if not said and self.code(rank) == self.code(0):
            return
        if rank != 0 and (not said or said.splitlines()[-1] not in shown):
            reason = f":\n{said}" if said else " without a word"
            print(f"rank {rank} ended first with code {self.code(rank)}{reason}", file=sys.stderr, flush=True)

    def code(self, rank: int) -> int:
        code = self._processes[rank].returncode
        return 128 - code if code < 0 else code


def _environment(rank: int, nproc: int, port: int, threads: int) -> dict[str, str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": nproc, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | {name: str(value) for name, value in place.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _in_child(cores: frozenset[int] | None) -> None:
    """Linux: keep this rank to its cores; end it if the launcher is killed outright, so that none is left behind."""
    import ctypes

    if cores is not None:
        os.sched_setaffinity(0, cores)
    set_death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


@contextmanager
def _forwarding(pass_on: Callable[[int], None]) -> Iterator[None]:
    """Within it SIGINT, SIGTERM and SIGUSR1 go to the ranks; the launcher waits for them."""

    def handle(number: int, frame: FrameType | None) -> None:
        pass_on(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
