"""A small rendered world and models trained on it, made once per session, and a way to call `vlp` in this process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SMALL = ("model.text.layer={width: 32, heads: 2, ffn: 64}", "precision=fp32", "log.tensorboard=false")
"""Overrides that make a tiny model tinier."""
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Shapes:
    """A rendered world with its tokenizer."""

    train: Path
    dev: Path
    tokenizer: Path

    @property
    def overrides(self) -> tuple[str, ...]:
        return (f"data.train={self.train}", f"data.val={self.dev}")


def call(main: Callable[[], None], *arguments: object) -> Said:
    """A console script in this process: a start of its own would cost seconds."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["command", *map(str, arguments)]
    code: Any = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = argv
    return Said(int(code or 0), out.getvalue(), err.getvalue())


def vlp(*arguments: object) -> Said:
    from vlp.cli import main

    return call(main, *arguments)


def vlp_data(*arguments: object) -> Said:
    from data_tools.cli import main

    return call(main, *arguments)


def vlp_process(*arguments: object) -> Said:
    """`python -m vlp` as a process of its own, as `--nproc` needs it."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    command = [sys.executable, "-m", "vlp", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def done(said: Said) -> Said:
    """The same, after checking that all went well."""
    assert said.code == 0, said.out + said.err
    assert "Traceback" not in said.err
    return said


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` that tell of a training step."""
    return [line for line in lines(run / "metrics.jsonl") if "loss" in line]


def evaluation_of(run: Path) -> dict[str, float]:
    """The metrics of a run's last evaluation."""
    last = lines(run / "metrics.jsonl")[-1]
    return {name.removeprefix("eval/"): value for name, value in last.items() if name.startswith("eval/")}


@pytest.fixture(scope="session", autouse=True)
def _joined() -> Iterator[None]:
    """One process group for all runs of this process: DeepSpeed keeps the groups of its first start."""
    from vlp.distributed import world

    with world():
        yield


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    folder = tmp_path_factory.mktemp("world")
    made = ("--samples", 200, "--dev-share", 0.2, "--samples-per-shard", 60)
    done(vlp_data("shapes", "--out", folder, *made))
    done(vlp_data("tokenizer", folder / "train", "--vocab-size", 200, "--out", folder / "tokenizer"))
    return Shapes(folder / "train", folder / "dev", folder / "tokenizer")


@pytest.fixture(scope="session")
def pretrain_single(shapes: Shapes) -> tuple[str, ...]:
    """The arguments of a short single-stream pre-training in fp32, but for `run.dir`."""
    length = ("run.steps=12", "batch.size=24", "batch.micro_tokens=400", "checkpoint.every=6")
    given = (*shapes.overrides, f"tokenizer={shapes.tokenizer}", *SMALL, *length, "model.dropout=0")
    return ("pretrain", "uniter_tiny", *given, "model.attention_dropout=0", "task.probe=[red, blue, green]")


@pytest.fixture(scope="session")
def single(pretrain_single: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a single-stream model, pre-trained in this process."""
    run = tmp_path_factory.mktemp("runs") / "single"
    done(vlp(*pretrain_single, f"run.dir={run}"))
    return run


@pytest.fixture(scope="session")
def dual(shapes: Shapes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a dual-stream model, pre-trained with dropout in bf16."""
    run = tmp_path_factory.mktemp("runs") / "dual"
    length = ("run.steps=9", "batch.size=24", "checkpoint.every=4", "evaluation.every=5", "evaluation.limit=30")
    given = (*shapes.overrides, f"tokenizer={shapes.tokenizer}", *SMALL, "precision=bf16", "log.tensorboard=true")
    done(vlp("pretrain", "lxmert_tiny", *given, *length, f"run.dir={run}"))
    return run
