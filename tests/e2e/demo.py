"""The main job on an embedded default: from nothing to a table, with the public commands only. `make demo` runs it.

A small world is drawn, a tokenizer trained, a single-stream and a dual-stream model pre-trained on two processes and
fine-tuned for questions and for retrieval, and features are extracted. Everything lands in runs/demo, which is removed
first. Read `commands()` to see how vlp is used; `tests/e2e/demo_report.py` gathers the results.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from data_tools.world.scene import COLOURS

RUNS = Path("runs/demo")
TRAIN, DEV, TOKENIZER = RUNS / "world/train", RUNS / "world/dev", RUNS / "tokenizer"
MODELS = ("uniter_tiny", "lxmert_tiny")
RANKS = 2
BARS = {"right": 0.95, "wrong": 0.40, "vqa": 0.85, "gap": 0.25}
"""Colour words with the right image at least, with a wrong one at most; questions at least, and above a blind model."""


def commands() -> Iterator[str]:
    """Every command of the demo, in order."""
    yield f"vlp-data shapes --out {RUNS}/world --samples 4000"
    yield f"vlp-data tokenizer {TRAIN} --vocab-size 200 --out {TOKENIZER}"
    for model in MODELS:
        yield from pretrain(model, f"{RUNS}/{model}")
    for model in MODELS:
        yield from finetune("vqa", f"{RUNS}/{model}", f"{RUNS}/{model}-vqa", "run.epochs=3")
    yield from finetune("vqa", f"{RUNS}/uniter_tiny", f"{RUNS}/question-only", "run.epochs=2 data.without=image")
    for model in MODELS:
        epochs = "run.epochs=0.3 batch.size=32"
        yield from finetune("retrieval", f"{RUNS}/{model}", f"{RUNS}/{model}-retrieval", epochs, "--limit 100")
    yield f"vlp extract --model {RUNS}/uniter_tiny/model --data {DEV} --out {RUNS}/features --what pooled,text,image"


def pretrain(model: str, run: str) -> Iterator[str]:
    """Masked words, masked regions and matching; then colour words are probed with right and with wrong images."""
    colours = ",".join(COLOURS)
    yield (
        f"vlp pretrain {model} --nproc {RANKS} data.train={TRAIN} tokenizer={TOKENIZER} run.dir={run} "
        f"run.steps=1500 log.every=100 task.objectives.mlm.probability=0.3 task.probe=[{colours}]"
    )
    yield f"vlp evaluate --model {run}/model --data {DEV} --out {run}/dev.json"


def finetune(task: str, pretrained: str, run: str, settings: str, judged: str = "") -> Iterator[str]:
    """A task, from the weights of a pre-trained model; judged on dev."""
    yield (
        f"vlp finetune {task} --nproc {RANKS} model={pretrained}/model data.train={TRAIN} run.dir={run} "
        f"log.every=100 {settings}"
    )
    yield f"vlp evaluate --model {run}/model --data {DEV} --out {run}/dev.json {judged}".rstrip()


def run(command: str) -> float:
    """Run a command of this environment, its output on the terminal; the seconds it took. Ends the demo if it fails."""
    program, *arguments = shlex.split(command)
    print(f"\n$ {command}", flush=True)
    start = time.monotonic()
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // RANKS))}
    code = subprocess.run([Path(sys.executable).with_name(program), *arguments], env=threads | os.environ).returncode
    if code:
        sys.exit(f"demo: this command failed with exit code {code}: {command}")
    return time.monotonic() - start


def main() -> None:
    """Run all commands, then report; exit code 1 if a bar is missed."""
    shutil.rmtree(RUNS, ignore_errors=True)
    seconds = {command: run(command) for command in commands()}
    from tests.e2e.demo_report import report

    sys.exit(0 if report(RUNS, MODELS, DEV, BARS, seconds) else 1)


if __name__ == "__main__":
    main()
