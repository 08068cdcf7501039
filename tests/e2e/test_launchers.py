"""The same run under each launcher: the curve does not depend on who starts the ranks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import LAUNCHED, ROOT, steps_of

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def started(launcher: tuple[str, ...], arguments: tuple[str, ...], run: Path) -> subprocess.Popen[str]:
    """A launcher of `-m vlp ...`, its output kept."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED} | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "vlp", *arguments, f"run.dir={run}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def same_curve(run: Path, reference: Path) -> None:
    assert json.loads((run / "run.json").read_text())["ranks"] == 2
    one, two = ([line["loss"] for line in steps_of(path)] for path in (reference, run))
    np.testing.assert_allclose(two, one, atol=2e-4)
    assert two[0] == pytest.approx(one[0], abs=1e-5)
    assert (run / "model" / "model.safetensors").is_file()


def test_torchrun_on_one_node(pretrain_single: tuple[str, ...], single: Path, tmp_path: Path) -> None:
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", "2")
    finished(started(launcher, pretrain_single, tmp_path / "run"))
    same_curve(tmp_path / "run", single)


def test_torchrun_on_two_nodes(pretrain_single: tuple[str, ...], single: Path, tmp_path: Path) -> None:
    place = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    launchers = [(*TORCHRUN, *place, "--node-rank", str(node)) for node in range(2)]
    nodes = [started(launcher, pretrain_single, tmp_path / "run") for launcher in launchers]
    finished(*nodes)
    same_curve(tmp_path / "run", single)


def test_an_elastic_restart_resumes(pretrain_single: tuple[str, ...], single: Path, tmp_path: Path) -> None:
    """A rank that is killed once: torchrun starts all again, and `--resume` goes on from the newest checkpoint."""
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    process = started(launcher, (*pretrain_single, "checkpoint.every=1", "log.every=1", "--resume"), tmp_path / "run")
    killed = False
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if not killed and any((tmp_path / "run" / "checkpoints").glob("step-*/state.json")):
            killed = kill_a_rank(tmp_path / "run")
    assert process.wait(timeout=300) == 0, "".join(said)[-3000:]
    assert killed
    assert any("from step" in line for line in said), "".join(said)[-3000:]
    same_curve(tmp_path / "run", single)


SSH = "#!/bin/sh\necho node\n"  # DeepSpeed asks it once whether the first node answers
PDSH = """#!/bin/sh
# pdsh ... -w node0,node1 COMMAND: on every node, %n being its number; the nodes are this machine
while [ "$1" != -w ]; do shift; done
nodes=$2; shift 2
number=0
for node in $(echo "$nodes" | tr , ' '); do
    sh -c "$(echo "$*" | sed "s/%n/$number/g")" & started="$started $!"
    number=$((number + 1))
done
for process in $started; do wait "$process" || failed=1; done
exit ${failed:-0}
"""


@pytest.mark.slow
def test_the_deepspeed_launcher_with_a_hostfile_of_two_nodes(
    pretrain_single: tuple[str, ...], single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in (("ssh", SSH), ("pdsh", PDSH)):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "hosts").write_text("node0 slots=1\nnode1 slots=1\n")
    place = ("--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--hostfile", str(tmp_path / "hosts"))
    command = ["deepspeed", *place, "--module", "vlp", *pretrain_single, f"run.dir={tmp_path / 'run'}"]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED} | {"OMP_NUM_THREADS": "1"}
    finished(
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    )
    same_curve(tmp_path / "run", single)


def kill_a_rank(run: Path) -> bool:
    """SIGKILL the rank with the highest number that works on this run."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            if f"run.dir={run}".encode() in words and b"torch.distributed.run" not in words:
                found.append(int(place.name))
        except (OSError, ValueError):
            continue
    if not found:
        return False
    os.kill(max(found), 9)
    return True
