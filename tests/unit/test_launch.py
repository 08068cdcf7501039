"""Starting ranks and ending them together; the ranks here are small scripts, not `vlp`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlp.errors import ConfigError
from vlp.launch import launch

LAUNCH = (
    "import sys; from vlp.launch import launch; sys.exit(launch(['x'], int(sys.argv[1]), grace=float(sys.argv[2])))"
)


def start(tmp_path: Path, root: Path, body: str, nproc: int = 2, grace: float = 0.5) -> subprocess.Popen[str]:
    """A launcher whose ranks run `body` instead of vlp's command line."""
    package = tmp_path / "vlp"
    package.mkdir()
    (package / "__init__.py").write_text(f"__path__.append({str(root / 'vlp')!r})")
    (package / "__main__.py").write_text("import os, sys, time, signal\nrank = int(os.environ['RANK'])\n" + body)
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(nproc), str(grace)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_ranks_find_each_other_and_rank_0_has_the_terminal(tmp_path: Path, root: Path) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS"
    body = f"print([os.environ[n] for n in '{names}'.split()], sys.argv[1:]); print('says', rank, file=sys.stderr)"
    process = start(tmp_path, root, body, nproc=3)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith("['0', '0', '3', '127.0.0.1', ")
    assert out.count("\n") == 1
    assert err == "says 0\n"


def test_a_mistake_that_all_see_is_printed_once(tmp_path: Path, root: Path) -> None:
    body = "time.sleep(0.2 * (rank == 0)); sys.exit(print('no such key', file=sys.stderr) or 2)"
    process = start(tmp_path, root, body, grace=20)  # a busy machine may take seconds to start rank 0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "no such key\n"


def test_another_rank_that_fails_first_is_shown_and_ends_the_rest(tmp_path: Path, root: Path) -> None:
    body = "time.sleep(60 * (rank != 1)); print('disk is full', file=sys.stderr); sys.exit(3)"
    began = time.monotonic()
    process = start(tmp_path, root, body)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert err == "rank 1 ended first with code 3:\ndisk is full\n"
    assert time.monotonic() - began < 30


def test_ranks_that_stop_together_are_not_blamed(tmp_path: Path, root: Path) -> None:
    process = start(tmp_path, root, "time.sleep(0.3 * (rank == 0)); sys.exit(1)", grace=20)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")


def test_a_rank_that_is_killed_is_named(tmp_path: Path, root: Path) -> None:
    process = start(tmp_path, root, "os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "rank 1 ended first with code 137 without a word" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_waited_for(tmp_path: Path, root: Path, number: int) -> None:
    body = """
done = []
for n in (signal.SIGTERM, signal.SIGINT):
    signal.signal(n, lambda *_: done.append(1))
open(f'ready-{rank}', 'w').close()
while not done:
    time.sleep(0.05)
time.sleep(0.5)
open(f'saved-{rank}', 'w').close()
"""
    process = start(tmp_path, root, body)
    while not all((tmp_path / f"ready-{rank}").exists() for rank in range(2)):
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert all((tmp_path / f"saved-{rank}").exists() for rank in range(2))


def test_no_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="--nproc 0"):
        launch([], 0)
