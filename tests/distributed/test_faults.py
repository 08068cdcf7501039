"""Runs that are struck anywhere go on as if nothing had happened: bit by bit the same at the same size and stage.

Thirty faults, drawn by a seed: a rank or all ranks killed, SIGTERM, a disk that is full, a checkpoint that was torn; at
any call within a step, a checkpoint or an evaluation; and six more at the start and in the export of the model. A few
run with the other tests, all by `make faults`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.faults import Fault, Kind, curve, run_job, struck, tiny_run
from tests.distributed.ranks import run_on_ranks
from vlp.train.checkpointfiles import completed, read_state, step_of

SEED = os.environ.get("VLP_FAULTS_SEED", "0")
"""Another one draws other faults."""
RANKS, STEPS, SAVED, JUDGED = 2, 12, 3, 4
LENGTH = {
    "model.dropout": 0.2,
    "run.steps": STEPS,
    "checkpoint": f"{{every: {SAVED}, keep: 2}}",
    "evaluation": f"{{every: {JUDGED}, metric: loss/mlm, better: lower}}",
}
PHASES = {
    "step": "step {}",
    "save": "the checkpoint after step {}",
    "evaluation": "the evaluation after step {}",
    "start": "starting",
    "export": "the export of the model",
}
STRUCK = {
    "step": range(2, STEPS + 1),
    "save": range(SAVED, STEPS + 1, SAVED),
    "evaluation": range(JUDGED, STEPS + 1, JUDGED),
    "start": range(1, 2),
    "export": range(STEPS, STEPS + 1),
}
KINDS: tuple[Kind | None, ...] = (
    "kill one",
    "kill all",
    "terminate one",
    "full disk",
    None,
    "kill one",
    "terminate all",
    "full disk",
    "kill all",
    None,
)
"""None: all are killed, and a file of the newest checkpoint is torn."""
SAMPLE = (2, 13, 25)


@dataclass(frozen=True)
class Point:
    """One of the thirty."""

    number: int
    phase: str
    kind: Kind | None

    def __str__(self) -> str:
        return f"{self.number}: {self.kind or 'torn'} in {self.phase}, zero{self.stage} {self.precision}"

    @property
    def stage(self) -> int:
        return self.number % 4

    @property
    def precision(self) -> str:
        return ("fp32", "bf16")[self.number // 4 % 2]

    @property
    def draw(self) -> random.Random:
        return random.Random(f"{SEED} {self.number}")

    def fault(self, calls: list[dict[str, int]]) -> Fault:
        """At a random call of a random rank; `calls` are those of a run without a fault, for each rank."""
        draw = self.draw
        # Two checkpoints stand at step 7: one to tear and one to fall back to.
        step = draw.choice([step for step in STRUCK[self.phase] if self.kind or step > 2 * SAVED])
        doing, rank = PHASES[self.phase].format(step), draw.randrange(RANKS)
        call = draw.randint(1, calls[rank][doing])
        return Fault(self.kind or "kill all", doing, call, rank, room=draw.choice((0, draw.randrange(20_000))))


POINTS = [Point(number, ("step", "save", "evaluation")[number // 10], KINDS[number % 10]) for number in range(30)]
POINTS += [Point(30 + number, ("start", "export")[number % 2], KINDS[number // 2]) for number in (0, 1, 2, 3, 6, 7)]


@dataclass(frozen=True)
class Reference:
    """A run that nothing struck."""

    directory: Path
    calls: list[dict[str, int]]


@pytest.fixture(scope="session")
def reference(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Reference]:
    """Gives the run without a fault at a stage and in a precision; each is made once."""
    made: dict[tuple[int, str], Reference] = {}

    def find(stage: int, precision: str) -> Reference:
        if (stage, precision) not in made:
            directory = tmp_path_factory.mktemp("reference") / "run"
            done = run_on_ranks(RANKS, run_job, **tiny_run(words, directory, stage, precision, **LENGTH))
            made[stage, precision] = Reference(directory, [rank["calls"] for rank in done])
        return made[stage, precision]

    return find


def kept(directory: Path) -> list[int]:
    """The steps of a run's checkpoints, after a look that nothing else lies there."""
    found = completed(directory / "checkpoints")
    assert sorted((directory / "checkpoints").iterdir()) == found
    assert all(read_state(path)["step"] == step_of(path) for path in found)
    return [step_of(path) for path in found]


def tear(directory: Path, draw: random.Random) -> str:
    """Spoil a file of the newest checkpoint; what was done."""
    newest = completed(directory / "checkpoints")[-1]
    file = draw.choice(sorted(newest.iterdir()))
    data = bytearray(file.read_bytes())
    how = draw.choice(("cut", "flipped", "zeros", "gone"))
    place = draw.randrange(len(data))
    if how == "gone" and file.name != "state.json":  # without it there would be no checkpoint
        file.unlink()
        return f"{file.name} is gone"
    if how == "cut":
        data = data[:place]
    elif how == "zeros":
        data[place:] = bytes(len(data) - place - 1) + b"\x01"
    else:
        data[place] ^= 1 << draw.randrange(8)
    file.write_bytes(data)
    return f"{file.name} {how} at {place}"


@pytest.mark.parametrize(
    "point", [pytest.param(p, id=str(p), marks=[] if p.number in SAMPLE else pytest.mark.slow) for p in POINTS]
)
def test_a_struck_run_goes_on_as_if_nothing_had_happened(
    point: Point, words: tuple[str, ...], reference: Callable[[int, str], Reference], tmp_path: Path
) -> None:
    whole = reference(point.stage, point.precision)
    fault, directory = point.fault(whole.calls), tmp_path / "run"
    run = tiny_run(words, directory, point.stage, point.precision, **LENGTH)
    last_words = struck(RANKS, run, fault)
    for said in last_words:  # each rank that could speak says a sentence
        expected = "File too large" if fault.kind == "full disk" else "another rank died"
        assert expected in said or "another rank died" in said, (fault, said)
    before = curve(directory) if (directory / "metrics.jsonl").exists() else []
    assert before == curve(whole.directory)[: len(before)], fault
    torn = tear(directory, point.draw) if point.kind is None else ""
    said = run_on_ranks(RANKS, run_job, **run, resume=True)[0]["said"]
    assert ("passed over a damaged checkpoint" in said) == bool(torn), (fault, torn, said)
    assert curve(directory) == curve(whole.directory), (fault, torn)
    found, wanted = kept(directory), kept(whole.directory)
    if point.kind is not None and point.kind.startswith("terminate"):  # it saved where it stopped, perhaps after step 9
        found, wanted = found[-1:], wanted[-1:]
    assert found == wanted, (fault, torn)
    model = Path("model") / "model.safetensors"
    assert (directory / model).read_bytes() == (whole.directory / model).read_bytes(), (fault, torn)
    assert not list(directory.rglob(".*")), (fault, torn)
