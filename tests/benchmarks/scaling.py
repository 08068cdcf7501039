"""How the cost of a training step grows: with ranks, examples, words, vocabulary and regions.

    make bench PART=scaling
    python -m tests.benchmarks.scaling ranks --rounds 3

`ranks`: UNITER's base model in fp32 on one rank and on two, each a process with one thread (a GPU each with CUDA), and
as many examples for each rank: the ratio is tokens a second on two ranks over twice those on one, so 1 means that
nothing is lost to reducing gradients, memory and waiting. `growth`: a model half as wide and half as deep; the ratio is
the slope of the step's time in a log-log plot over what grows, so 1 means in proportion, less that a part of the cost
stays; the sizes are taken in turn, each round gives a slope.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.measuring import device_of, in_ranks, interleaved, parser_of
from tests.benchmarks.regiondata import region_data
from tests.benchmarks.results import Result, of_rounds, report

OBJECTIVES = {"mlm": {"kind": "masked_language"}, "itm": {"kind": "matching"}, "mrfr": {"kind": "region_feature"}}
PER_RANK, STEPS, WORDS, REGIONS = 16, 2, 12, 36
HALF = (
    "model.text.layer.width=384",
    "model.text.layer.heads=6",
    "model.text.layer.ffn=1536",
    "model.encoder.0.repeat=6",
)
USUAL = {"examples": 16, "words": WORDS, "vocabulary": 28996, "regions": REGIONS}
GROWTH = {
    "examples": (8, 16, 32),
    "words": (12, 24, 48),
    "vocabulary": (14498, 28996, 57992),
    "regions": (18, 36, 72),
}


def run_values(folder: Path, examples: int) -> dict[str, Any]:
    """A run on the data of a folder."""
    return {
        "model": "uniter_base",
        "tokenizer": str(folder / "tokenizer"),
        "task": {"name": "pretrain", "objectives": OBJECTIVES},
        "data": {"train": str(folder / "data")},
        "batch": {"size": examples, "micro_tokens": 1 << 30},
    }


# ------------------------------------------------------------------------------------------------------------- ranks


def ranks(rounds: int, device: str) -> Iterator[Result]:
    """Weak scaling from one rank to two."""
    from torch.cuda import device_count

    if device == "cuda" and device_count() < 2:
        print("ranks: one GPU is no place for two ranks; not measured", flush=True)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        region_data(folder, samples=2 * PER_RANK * (STEPS + 1), words=WORDS, regions=REGIONS)
        found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
        for _ in range(rounds):
            for number, taken in found.items():
                taken.append(_launched(number, folder, device))
    efficiency = [two["tokens/s"] / (2 * one["tokens/s"]) for one, two in zip(found[1], found[2], strict=True)]
    figures = {
        f"{number} rank{'s' * (number > 1)}, {name}": statistics.median(each[name] for each in taken)
        for number, taken in found.items()
        for name in ("tokens/s", "s a step")
    }
    against = f"tokens a second on 2 ranks over twice those on 1, {PER_RANK} examples a rank"
    yield of_rounds("scaling/uniter_base/2_ranks", efficiency, against=against, figures=figures)


def _launched(number: int, folder: Path, device: str) -> dict[str, float]:
    """What rank 0 of so many says."""
    own = {"DS_ACCELERATOR": device}
    return in_ranks("tests.benchmarks.scaling", "--rank", str(folder), ranks=number, environment=own)[0]


def one_rank(folder: Path) -> None:
    """Train some steps as one of the ranks, and print the pace."""
    from vlp.distributed import world

    with world() as place:
        engine, steps = _engine(run_values(folder, PER_RANK * place.size), (), STEPS + 1, place)
        seconds = interleaved({"step": iter_calls(engine, steps)}, STEPS, device=place.device.type, warm=1)["step"]
        tokens = sum(batch.tokens for step in steps[1:] for batch in step.micro_batches) / STEPS
        engine.close()
        taken = statistics.median(seconds)
        print(json.dumps({"tokens/s": place.size * tokens / taken, "s a step": taken}), flush=True)


def _engine(values: Mapping[str, Any], overrides: tuple[str, ...], count: int, place: Any) -> tuple[Any, list[Any]]:
    """A run's engine in fp32, and its first steps on this rank."""
    from tests.benchmarks.pairs import assembled_run, steps_of
    from tests.benchmarks.training import Ours
    from vlp.assemble import make_module

    made = assembled_run(values, overrides)
    steps = steps_of(made, count, place)
    return Ours(make_module(made), made.task.weights, "fp32", place).engine, steps


def iter_calls(engine: Any, steps: list[Any]) -> Any:
    """Trains on the next of the steps at each call, again from the first behind the last."""
    state = {"at": 0}

    def call() -> None:
        engine.train_step(steps[state["at"] % len(steps)], 1e-4)
        state["at"] += 1

    return call


# ------------------------------------------------------------------------------------------------------------ growth


def growth(rounds: int, device: str) -> Iterator[Result]:
    """The slope of a step's time over each size."""
    from vlp.distributed import world

    with world() as place:
        for what, sizes in GROWTH.items():
            engines, calls = [], {}
            for size in sizes:
                with tempfile.TemporaryDirectory() as folder:
                    engine, steps = _sized(Path(folder), {**USUAL, what: size}, place)
                engines.append(engine)
                calls[str(size)] = iter_calls(engine, steps)
            seconds = interleaved(calls, rounds, device=device, warm=2)
            for engine in engines:
                engine.close()
            slopes = [
                float(np.polyfit(np.log(sizes), np.log(taken), 1)[0]) for taken in zip(*seconds.values(), strict=True)
            ]
            figures = {f"{size} {what}, ms": 1e3 * statistics.median(seconds[str(size)]) for size in sizes}
            against = f"slope of the step's time over {what}; else {_usual(what)}"
            yield of_rounds(f"scaling/growth/{what}", slopes, against=against, figures=figures)


def _sized(folder: Path, sizes: Mapping[str, int], place: Any) -> tuple[Any, list[Any]]:
    region_data(
        folder,
        samples=2 * sizes["examples"],
        words=sizes["words"],
        regions=sizes["regions"],
        vocabulary=sizes["vocabulary"],
    )
    overrides = (*HALF, f"model.text.vocab_size={sizes['vocabulary']}")
    return _engine(run_values(folder, sizes["examples"]), overrides, 2, place)


def _usual(what: str) -> str:
    return ", ".join(f"{size:,} {name}" for name, size in USUAL.items() if name != what)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="ranks, growth (default: both)")
    parser.add_argument("--rounds", type=int, help="default: 1 of ranks, 2 of growth")
    given = parser.parse_args()
    device = device_of(given.device)
    results: list[Result] = []
    if not given.parts or "ranks" in given.parts:
        results += ranks(given.rounds or 1, device)
    if not given.parts or "growth" in given.parts:
        results += growth(given.rounds or 2, device)
    report("scaling", __doc__, results, device=device)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        one_rank(Path(sys.argv[2]))
    else:
        main()
