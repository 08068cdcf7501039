"""The loop over real ranks: logs, evaluations, checkpoints, signals."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import run_on_ranks
from tests.distributed.standin import batch_of, engine_of, split_step
from vlp.distributed import World
from vlp.errors import ConfigError, VlpError
from vlp.train.checkpoint import CheckpointConfig, Checkpoints
from vlp.train.checkpointfiles import completed, step_of
from vlp.train.evaluation import Evaluation, EvaluationConfig
from vlp.train.guard import Guard, GuardConfig
from vlp.train.logs import METRICS_FILE, LogConfig, Logs
from vlp.train.quarantine import Quarantine
from vlp.train.saver import Saver
from vlp.train.schedule import ScheduleConfig
from vlp.train.trainer import Outcome, Trainer
from vlp.types import Step


def bad(key: str) -> dict[str, str]:
    return {"data": "d", "shard": "a.tar", "key": key, "member": "jpg", "error": "does not decode"}


def run(
    world: World,
    directory: Path,
    steps: int,
    stop_in: int = -1,
    save_in: int = -1,
    nan_from: int = 99,
    scores: tuple[float, ...] = (),
    every: int | None = 4,
    warmup: int = 2,
    bad_from: int = 99,
    fail_in: int = -1,
    limit: float = 0.1,
    leap_in: int = -1,
    judged: dict[str, Any] | None = None,
    **kept: Any,
) -> dict[str, Any]:
    """A run of the stand-in, resumed if the directory has a checkpoint.

    The last rank gets SIGTERM in step `stop_in`, SIGUSR1 in step `save_in`, and cannot make step `fail_in`; from step
    `bad_from` on each rank replaces six examples a step, from `nan_from` on the loss is none. Evaluation n scores
    `scores[n]`; the loss leaps in step `leap_in`.
    """
    engine = engine_of(world, 2, dropout=0.5)
    checkpoints = Checkpoints(directory / "checkpoints", CheckpointConfig(every=every, keep=2, **kept), world, {})
    state = checkpoints.load_newest(engine)
    first = state.step if state else 0

    def loader() -> Iterator[Step]:
        for number in range(first, steps):
            for wanted, signal_ in ((stop_in, signal.SIGTERM), (save_in, signal.SIGUSR1)):
                if number == wanted and world.rank == world.size - 1:
                    os.kill(os.getpid(), signal_)
            engine.task.offset = math.nan if number >= nan_from else 900.0 if number == leap_in else 0.0  # type: ignore[assignment]
            step = split_step(number, world, 2)
            if number == 1:
                step.quarantined.append(bad(f"bad of rank {world.rank}"))
            if number >= bad_from:
                step.quarantined.extend(bad(f"{number}-{world.rank}-{place}") for place in range(6))
            if number == fail_in and world.rank == world.size - 1:
                step = Step(number, [], 0, failure="data: no example can be used")
            yield step

    def judge() -> dict[str, float]:
        losses = engine.inference(lambda task: task(engine.to_device(batch_of([1, 2]))))
        taken.append(len(taken))
        metrics = {"loss": float(losses.sums["words"])}
        return metrics | ({"score": scores[(engine.states.steps - 1) // 5]} if scores else {})

    taken: list[int] = []
    evaluation = Evaluation(EvaluationConfig(every=5, **(judged or {})), judge)
    if state:
        evaluation.restore(state.facts)
    logs = Logs(directory, LogConfig(tensorboard=False), world, steps=steps, resume_from=first, terminal=False)
    guard = Guard(GuardConfig(skipped_in_a_row=3), logs, world)
    guard.remember(directory / METRICS_FILE)
    try:
        with logs:
            outcome: Outcome = Trainer(
                engine,
                loader(),
                steps=steps,
                schedule=ScheduleConfig(warmup=warmup),
                learning_rate=0.01,
                saver=Saver(checkpoints, engine, first),
                logs=logs,
                hooks=[Quarantine(limit, logs, world), guard],
                first_step=first,
                evaluation=evaluation,
            ).run()
    finally:
        engine.close()
    return asdict(outcome)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def curve(directory: Path) -> list[tuple[int, float, float, float]]:
    return [(r["step"], r["loss"], r["lr"], r["grad_norm"]) for r in lines(directory) if "loss" in r]


def test_a_run_leaves_numbers_evaluations_and_checkpoints(tmp_path: Path) -> None:
    outcomes = run_on_ranks(2, run, directory=tmp_path, steps=10)
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0]["step"], outcomes[0]["finished"], outcomes[0]["quarantined"]) == (10, True, 2)
    records = lines(tmp_path)
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 11))
    assert [r["step"] for r in records if "eval/loss" in r] == [5, 10]
    wanted = "loss/words loss/match words/accuracy lr grad_norm examples_per_second tokens_per_second data_wait"
    assert set(wanted.split()) <= set(records[0])
    assert records[0]["lr"] == pytest.approx(0.01 / 3)
    batches = [
        b for rank in range(2) for b in split_step(0, World(rank, 2, rank, torch.device("cpu")), 2).micro_batches
    ]
    padded = sum(len(batch) * max(batch.joint.lengths) for batch in batches)
    assert records[0]["padding"] == pytest.approx(1 - sum(batch.tokens for batch in batches) / padded)
    assert records[0]["padding"] > 0
    assert [p.name for p in completed(tmp_path / "checkpoints")] == ["step-00000008", "step-00000010"]
    quarantined = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert quarantined == [{"step": 2, **bad(f"bad of rank {rank}")} for rank in range(2)]


def test_a_step_that_one_rank_cannot_make_ends_the_run_on_all(tmp_path: Path) -> None:
    for error in errors_on_ranks(2, directory=tmp_path, steps=10, fail_in=6):
        assert error == "DataError: data: no example can be used"
    assert completed(tmp_path / "checkpoints")[-1].name == "step-00000006", "the steps before it are kept"
    assert run_on_ranks(2, run, directory=tmp_path, steps=10)[0]["finished"]


def test_too_many_bad_examples_end_the_run_on_all_ranks(tmp_path: Path) -> None:
    for error in errors_on_ranks(2, directory=tmp_path, steps=10, bad_from=4):
        assert "18.9% of the examples seen" in error, error
    assert completed(tmp_path / "checkpoints")[-1].name == "step-00000005"
    assert run_on_ranks(2, run, directory=tmp_path, steps=10, bad_from=4, limit=0.5)[0]["finished"]


def errors_on_ranks(ranks: int, **arguments: Any) -> list[str]:
    """What each rank's run ended with."""
    return run_on_ranks(ranks, failing_run, **arguments)


def failing_run(world: World, **arguments: Any) -> str:
    try:
        run(world, **arguments)
    except VlpError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run_on_ranks(2, run, directory=whole, steps=10)
    stopped = run_on_ranks(2, run, directory=parted, steps=10, stop_in=6)[0]
    assert (stopped["step"], stopped["finished"]) == (7, False)
    assert completed(parted / "checkpoints")[-1].name == "step-00000007"
    assert run_on_ranks(2, run, directory=parted, steps=10)[0]["finished"]
    assert curve(parted) == curve(whole)


def test_a_resumed_run_repeats_no_step_in_the_metrics(tmp_path: Path) -> None:
    run_on_ranks(2, run, directory=tmp_path, steps=10)
    for path in completed(tmp_path / "checkpoints")[1:]:
        path.rename(path.with_name("lost"))
    before = curve(tmp_path)
    run_on_ranks(2, run, directory=tmp_path, steps=10)  # from step 8, as after a crash in step 9
    assert curve(tmp_path) == before


def test_without_a_period_only_the_end_is_kept(tmp_path: Path) -> None:
    run_on_ranks(1, run, directory=tmp_path, steps=3, every=None)
    assert [path.name for path in completed(tmp_path / "checkpoints")] == ["step-00000003"]


def test_a_warmup_that_does_not_fit_is_refused_before_any_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup"):
        run_on_ranks(1, run, directory=tmp_path, steps=3, warmup=4)


def steps_kept(directory: Path) -> list[int]:
    return [step_of(path) for path in completed(directory / "checkpoints")]


def test_a_request_for_a_checkpoint_saves_and_goes_on(tmp_path: Path) -> None:
    assert run_on_ranks(2, run, directory=tmp_path, steps=10, save_in=5, every=None)[0]["finished"]
    assert steps_kept(tmp_path) == [6, 10]


def test_a_checkpoint_by_the_clock(tmp_path: Path) -> None:
    run_on_ranks(2, run, directory=tmp_path, steps=3, every=None, minutes=1e-9)
    assert steps_kept(tmp_path) == [2, 3], "every step wrote one, two are kept"


BEST = {"metric": "score", "better": "higher"}


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    run_on_ranks(2, run, directory=tmp_path, steps=30, scores=(1, 5, 4, 3, 2, 1), judged=BEST, keep_best=True)
    assert steps_kept(tmp_path) == [10, 28, 30]


def test_a_resumed_run_remembers_the_best(tmp_path: Path) -> None:
    scores = (1, 5, 4, 3, 2, 1)
    run_on_ranks(2, run, directory=tmp_path, steps=30, stop_in=16, scores=scores, judged=BEST, keep_best=True)
    run_on_ranks(2, run, directory=tmp_path, steps=30, scores=scores, judged=BEST, keep_best=True)
    assert steps_kept(tmp_path) == [10, 28, 30]


IMPATIENT = {"metric": "score", "better": "lower", "patience": 2}


@pytest.mark.parametrize("stop_in", [-1, 14, 17])
def test_without_improvement_the_run_ends_early(tmp_path: Path, stop_in: int) -> None:
    arguments = {"directory": tmp_path, "steps": 40, "scores": (3, 1, 2, 2, 0, 0, 0, 0), "judged": IMPATIENT}
    if stop_in > 0:  # also where the run was stopped before an evaluation that was due, and where between two
        assert run_on_ranks(2, run, stop_in=stop_in, **arguments)[0]["step"] == stop_in + 1
    outcome = run_on_ranks(2, run, **arguments)[0]
    assert (outcome["step"], outcome["finished"]) == (20, True)
    assert steps_kept(tmp_path)[-1] == 20
    before = lines(tmp_path)
    assert [line["step"] for line in before if "eval/score" in line] == [5, 10, 15, 20]
    outcome = run_on_ranks(2, run, **arguments)[0]
    assert (outcome["step"], outcome["finished"]) == (20, True), "an ended run that is resumed does not train on"
    assert lines(tmp_path) == before


def test_a_metric_that_is_none_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.metric: 'scores' is none .*did you mean 'score'"):
        run_on_ranks(1, run, directory=tmp_path, steps=6, scores=(1, 1), judged={"metric": "scores"})


def test_a_finished_run_that_is_resumed_repeats_no_evaluation(tmp_path: Path) -> None:
    run_on_ranks(2, run, directory=tmp_path, steps=10)
    before = lines(tmp_path)
    assert run_on_ranks(2, run, directory=tmp_path, steps=10)[0]["finished"]
    assert lines(tmp_path) == before


def leaps(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "spikes.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop_in", [-1, 35])
def test_a_loss_that_leaps_is_recorded_with_the_examples_of_all_ranks(tmp_path: Path, stop_in: int) -> None:
    run_on_ranks(2, run, directory=tmp_path, steps=45, leap_in=40, stop_in=stop_in)
    if stop_in > 0:  # a run that resumes knows the range of its losses still
        run_on_ranks(2, run, directory=tmp_path, steps=45, leap_in=40)
    (found,) = leaps(tmp_path)
    assert (found["step"], found["objective"]) == (41, "match")
    assert found["loss"] > found["mean"] + 6 * found["sigma"] > found["mean"]
    assert sorted(found["examples"]) == sorted(map(str, range(40 * 12, 41 * 12)))


def test_steps_that_are_only_skipped_end_the_run_on_all_ranks(tmp_path: Path) -> None:
    for error in errors_on_ranks(2, directory=tmp_path, steps=20, nan_from=6):
        assert error.startswith("TrainingError: step 9: 3 steps in a row were skipped; the loss of match is not finite")
    assert steps_kept(tmp_path)[-1] == 9
    assert len(lines(tmp_path)) == 9 + 1, "the step that ended the run is in the metrics"
