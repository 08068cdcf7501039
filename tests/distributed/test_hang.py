"""A rank that hangs or dies: the others end by themselves, and say which rank it was and what it was doing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.ranks import RankDied, run_on_ranks
from vlp.distributed import Board, World, barrier
from vlp.errors import TrainingError
from vlp.train.watchdog import Watchdog

SECONDS = 4.0


def hang(world: World, folder: Path, rank: int, how: str) -> None:
    """Two steps of a barrier each; in the second one rank stops, or does something else for ever."""

    def end(message: str) -> None:
        (folder / f"rank-{world.rank}").write_text(message)
        os._exit(1)

    with Watchdog(SECONDS / 60, world.rank, Board(world), end) as watchdog:
        watchdog.report("step 1")
        barrier(world)
        watchdog.report("step 2")
        if world.rank == rank and how == "stopped":
            time.sleep(SECONDS / 4)  # long enough to have said so
            os.kill(os.getpid(), signal.SIGSTOP)
        elif world.rank == rank:
            watchdog.report("the checkpoint after step 1")
            time.sleep(60)
        barrier(world)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "how", "blamed"),
    [
        (1, "stopped", "rank 1 no longer answers and was last heard in step 2"),
        (1, "elsewhere", "rank 1 is in the checkpoint after step 1"),
        (0, "stopped", "probably rank 0, which keeps the board and no longer answers"),
    ],
)
def test_a_rank_that_hangs_is_named(tmp_path: Path, rank: int, how: str, blamed: str) -> None:
    with pytest.raises((RankDied, TimeoutError)):
        run_on_ranks(2, hang, folder=tmp_path, rank=rank, how=how, timeout=30)
    said = (tmp_path / f"rank-{1 - rank}").read_text()
    assert said.startswith(f"rank {1 - rank}: step 2 has taken 0.")
    assert blamed in said


def leave(world: World) -> None:
    with Watchdog(1, world.rank, Board(world)) as watchdog:
        watchdog.report("step 7")
        if world.rank == 1:
            os._exit(1)
        barrier(world)


def test_a_rank_that_is_gone_is_told_in_a_sentence() -> None:
    with pytest.raises(TrainingError, match=r"rank 0: step 7: a collective failed \(.*another rank died: .*--resume"):
        run_on_ranks(2, leave)
