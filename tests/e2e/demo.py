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
STEPS = {"uniter_tiny": 1400, "lxmert_tiny": 1500}
"""The models and how long they are pre-trained."""
MODELS = tuple(STEPS)
RANKS = 2
RATIOS = {"mlm": 6, "itm": 1, "mrfr": 0.25, "mrc_kl": 0.25}
BARS = {"right": 0.95, "wrong": 0.40, "vqa": 0.85, "gap": 0.25}
"""Colour words with the right image at least, with a wrong one at most; questions at least, and above a blind model."""


def commands() -> Iterator[str]:
    """Every command of the demo, in order."""
    yield f"vlp-data shapes --out {RUNS}/world --samples 4000"
    yield f"vlp-data tokenizer {TRAIN} --vocab-size 200 --out {TOKENIZER}"
    for model in MODELS:
        yield pretrain(model)
    for model in MODELS:
        yield finetune("vqa", model, f"{model}-vqa", "run.steps=300")
    yield finetune("vqa", MODELS[0], "question-only", "run.steps=300 data.without=image")
    for model in MODELS:
        yield finetune("retrieval", model, f"{model}-retrieval", "run.steps=60 batch.size=32 task.judged_images=50")
    yield f"vlp extract --model {RUNS}/{MODELS[0]}/model --data {DEV} --out {RUNS}/features --what pooled,text,image"


def pretrain(model: str) -> str:
    """Masked words, masked regions and matching; at the end colour words are probed with right and with wrong images.

    Captions here are short and scenes never repeat, so more words are hidden than usual, all of them by [MASK], and
    nothing is dropped out. One objective per step, mostly words, grounds both models soonest.
    """
    ratios = " ".join(f"task.objectives.{name}.ratio={ratio}" for name, ratio in RATIOS.items())
    return (
        f"vlp pretrain {model} --nproc {RANKS} data.train={TRAIN} data.val={DEV} tokenizer={TOKENIZER} "
        f"run.dir={RUNS}/{model} run.steps={STEPS[model]} log.every=100 task.probe=[{','.join(COLOURS)}] "
        f"task.combine=one {ratios} task.objectives.mlm.probability=0.3 task.objectives.mlm.mask=1 "
        "task.objectives.mlm.random=0 model.dropout=0 model.attention_dropout=0 optimizer.betas=[0.9,0.98]"
    )


def finetune(task: str, model: str, run: str, settings: str) -> str:
    """A task, from the weights of a pre-trained model; judged on dev at the end."""
    return (
        f"vlp finetune {task} --nproc {RANKS} model={RUNS}/{model}/model data.train={TRAIN} data.val={DEV} "
        f"run.dir={RUNS}/{run} log.every=100 run.epochs=null {settings}"
    )


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
