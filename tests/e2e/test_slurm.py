"""The sbatch file of docs/ under a stand-in for Slurm: saved before the time is up, queued again, and gone on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import LAUNCHED, ROOT, steps_of

SRUN = '#!/bin/sh\nexec "$@"\n'  # one node: its task gets the signals that srun would pass on
SCONTROL = '#!/bin/sh\ncase "$1" in show) echo 127.0.0.1;; requeue) echo "$2" >>"$REQUEUED";; esac\n'


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun and scontrol are ours."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    job = {"JOB_ID": "7", "NNODES": "1", "NODEID": "0", "GPUS_ON_NODE": "2", "JOB_NODELIST": "node0"}
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "OMP_NUM_THREADS": "1", "VLP_SAVE_SECONDS": "1", "REQUEUED": str(tmp_path / "requeued")}
    return kept | own | {f"SLURM_{name}": value for name, value in job.items()}


@pytest.mark.slow
def test_a_job_whose_time_is_up_is_queued_again(
    pretrain_single: tuple[str, ...], slurm: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ["bash", str(ROOT / "docs" / "slurm.sbatch"), *pretrain_single[1:], f"run.dir={run}", "run.steps=1200"]
    options = {"cwd": ROOT, "env": slurm, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    job = subprocess.Popen([*command, "checkpoint.every=null"], **options)  # type: ignore[call-overload]
    while not (run / "metrics.jsonl").exists() or len(steps_of(run)) < 5:
        assert job.poll() is None, job.stdout.read()
        time.sleep(0.2)
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert (tmp_path / "requeued").read_text() == "7\n"
    saved = sorted((run / "checkpoints").glob("step-*"))
    assert len(saved) == 2, "one when asked, one at the end"
    assert "stopped by a signal after step" in said
    done = len(steps_of(run))
    again = subprocess.run([*command, "checkpoint.every=null"], timeout=240, check=False, **options)  # type: ignore[call-overload]
    assert again.returncode == 0, again.stdout
    assert f"from step {done}" in again.stdout
    assert [line["step"] for line in steps_of(run)] == list(range(1, 1201))
