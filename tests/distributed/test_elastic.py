"""A run that is killed goes on at another ZeRO stage and on another number of ranks, along the same curve.

All 16 pairs of stages and, dealt over them, all 16 pairs of 1 to 4 ranks; run by `make faults`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.distributed.faults import Fault, curve, run_job, struck, tiny_run
from tests.distributed.ranks import run_on_ranks

KILLED, AFTER = 8, 50
"""The run is killed within its first steps, and must keep to the curve for so many more."""
PAIRS = [(before, after) for before in range(4) for after in range(4)]
LENGTH = {
    "model.dropout": 0,
    "model.attention_dropout": 0,
    "run.steps": KILLED + AFTER,
    "evaluation": "{every: 20}",
    "checkpoint": "{every: 2}",
}


LAYOUT = {"padding", "micro_batches"}
"""Numbers that tell how a step is dealt to the ranks."""


def ranks_of(before: int, after: int) -> tuple[int, int]:
    """The ranks of a pair of stages: a one-to-one map, so that every pair of numbers comes up once."""
    return 1 + (before + after) % 4, 1 + (before + 2 * after) % 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    PAIRS,
)
def test_a_killed_run_goes_on_at_another_stage_and_size(
    before: int, after: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    draw, (ranks, ranks_after) = random.Random(f"{before} {after}"), ranks_of(before, after)
    whole, parted = (tmp_path / name for name in ("whole", "parted"))
    run_on_ranks(ranks, run_job, **tiny_run(words, whole, before, "fp32", **LENGTH))
    fault = Fault("kill all", f"step {draw.randint(3, KILLED)}", draw.randint(1, 15_000), draw.randrange(ranks))
    struck(ranks, tiny_run(words, parted, before, "fp32", **LENGTH), fault)
    said = run_on_ranks(ranks_after, run_job, **tiny_run(words, parted, after, "fp32", **LENGTH), resume=True)[0][
        "said"
    ]
    first = int(said.split("from step ")[1].split()[0])
    assert first <= KILLED
    for one, other in zip(curve(whole, LAYOUT), curve(parted, LAYOUT), strict=True):
        assert other == pytest.approx(one, abs=1e-5), f"{fault}, from step {first}"
