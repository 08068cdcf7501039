"""What `vlp plan` says of memory against what ranks really take, at every ZeRO stage.

    python -m tests.benchmarks.memory [tiny] [base] [bf16] [fp32] [1] [2] [tokens=2048]

Each rank is a process that trains two steps of a run on made-up regions (36 of 2048 numbers and 16 words per
example, 512 tokens per micro-batch unless given), saves a checkpoint and exports the model. Measured is its peak of
resident memory (VmHWM, Linux) above what it had after all imports; planned is `vlp plan --cpu` of the same config. Held
to: within 10 %, for the tiny model within 10 % or 100 MB. It also tells what all ranks take together, imports included.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import in_ranks
from tests.benchmarks.results import Result, of_rounds, report, show

MODELS = {"tiny": "uniter_tiny", "base": "uniter_base"}
STAGES, RANKS, PRECISIONS = (0, 1, 2, 3), (1, 2), ("bf16", "fp32")
WORDS, REGIONS, TOKENS = 16, 36, 512
MB = 1 << 20
_IMPORTED = (
    "vlp.job",
    "vlp.train.trainer",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)
"""All that a run imports sooner or later, so that the baseline holds it."""


def main(arguments: list[str]) -> None:
    models = [name for name in MODELS if name in arguments] or list(MODELS)
    precisions = [name for name in PRECISIONS if name in arguments] or list(PRECISIONS)
    ranks = [number for number in RANKS if str(number) in arguments] or list(RANKS)
    tokens = next((int(said[7:]) for said in arguments if said.startswith("tokens=")), TOKENS)
    rows = []
    with tempfile.TemporaryDirectory(prefix="vlp-memory-") as folder:
        from tests.benchmarks.regiondata import region_data

        data, tokenizer = region_data(Path(folder), samples=160, words=WORDS, regions=REGIONS)
        given = [f"data.train={data}", f"tokenizer={tokenizer}"]
        for model in models:
            for precision in precisions:
                for number in ranks:
                    for stage in STAGES:
                        rows.append(measured(model, precision, number, stage, given, Path(folder), tokens))
                        print(*_cells(rows[-1]), flush=True)  # all take long
    columns = ["model", "precision", "ranks", "stage", "planned MB", "measured MB", "off by", "all ranks, with imports"]
    cells = [_cells(row) for row in rows]
    show(f"{tokens} tokens per micro-batch", columns, cells)
    missed = [row for row in rows if not holds(row)]
    print(f"{len(rows) - len(missed)} of {len(rows)} within what is held to")
    report("memory", __doc__, [_result(row, tokens) for row in rows])


def _result(row: dict[str, Any], tokens: int) -> Result:
    name = f"memory/{MODELS[row['model']]}/{row['precision']}/{row['ranks']}_ranks/zero{row['stage']}/{tokens}_tokens"
    figures = {f"{what}, MB": row[what] for what in ("planned", "measured")}
    figures["all ranks together, imports included, MB"] = row["together"]
    return of_rounds(name, [row["planned"] / row["measured"]], against="planned over measured", figures=figures)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["model"],
        row["precision"],
        str(row["ranks"]),
        str(row["stage"]),
        f"{row['planned']:,.0f}",
        f"{row['measured']:,.0f}",
        f"{row['planned'] / row['measured'] - 1:+.1%}",
        f"{row['together']:,.0f}",
    ]


def holds(row: dict[str, Any]) -> bool:
    """Within 10 %, or 100 MB for a tiny model."""
    off = abs(row["planned"] - row["measured"])
    return bool(off <= 0.1 * row["measured"] or (row["model"] == "tiny" and off <= 100))


def measured(
    model: str, precision: str, ranks: int, stage: int, given: list[str], folder: Path, tokens: int
) -> dict[str, Any]:
    """One run, and its plan; sizes in MB of 2^20 bytes."""
    examples = tokens // (WORDS + 2 + REGIONS)
    overrides = [
        f"model={MODELS[model]}",
        f"precision={precision}",
        f"deepspeed=zero{stage}",
        f"batch.micro_tokens={tokens}",
        f"batch.size={examples * ranks}",
        "run.steps=2",
        f"run.dir={folder / f'{model}-{precision}-{ranks}-{stage}'}",
        *given,
    ]
    found = in_ranks("tests.benchmarks.memory", "rank", *overrides, ranks=ranks, environment={})
    peaks = [rank["peak"] for rank in found]
    return {
        "model": model,
        "precision": precision,
        "ranks": ranks,
        "stage": stage,
        "planned": _planned(ranks, overrides),
        "measured": max(peaks),
        "together": sum(rank["baseline"] + rank["peak"] for rank in found),
    }


def _planned(ranks: int, overrides: list[str]) -> float:
    from vlp.plan.cluster import Cluster
    from vlp.plan.config import planned_run
    from vlp.plan.ground import ground_of
    from vlp.plan.plan import make_plan

    ground = ground_of(planned_run("uniter_tiny", overrides), text_tokens=None, regions=None)
    plan = make_plan(ground, Cluster(ranks, 1, 24.0, 1.0, 1.0), "cpu")
    return plan.chosen.memory.peak / MB


def one_rank(overrides: list[str]) -> None:
    """Train, and print the memory that imports and training took, in MB."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    for name in _IMPORTED:
        importlib.import_module(name)
    from vlp.job import train

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    baseline = _status("VmRSS")
    train("uniter_tiny", overrides, "pretrain", resume=False)
    print(json.dumps({"baseline": baseline, "peak": _status("VmHWM") - baseline}))


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        one_rank(sys.argv[2:])
    else:
        main(sys.argv[1:])
