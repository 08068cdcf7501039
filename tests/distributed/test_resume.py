"""A run that stops and resumes walks the same curve, at every ZeRO stage and world size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.faults import curve, run_job, tiny_run
from tests.distributed.ranks import run_on_ranks
from tests.distributed.standin import engine_of, split_step
from vlp.distributed import World
from vlp.errors import CheckpointError
from vlp.train.checkpoint import CheckpointConfig, Checkpoints
from vlp.train.checkpointfiles import newest, read_weights

STAGES = (0, 1, 2, 3)
BEFORE, AFTER = 3, 4


def checkpoints_of(
    directory: Path, world: World, settings: dict[str, Any] | None = None, keep: int = 2, **identity: Any
) -> Checkpoints:
    return Checkpoints(directory, CheckpointConfig(keep=keep), world, {"model": "m", "data": "d", **identity}, settings)


def train(world: World, stage: int, directory: Path | None, first: int, last: int, **options: Any) -> list[float]:
    """Steps first .. last; a run that does not begin at 0 resumes from the checkpoint, one that does saves one."""
    engine = engine_of(world, stage, **options)
    if first:
        state = checkpoints_of(directory, world).load_newest(engine)
        assert state is not None
        assert state.step == first
        assert state.facts == {"note": 1}
    numbers = []
    for number in range(first, last):
        result = engine.train_step(split_step(number, world, 2), 0.01)
        numbers += [result.loss, result.grad_norm]
    if directory and not first:
        checkpoints_of(directory, world).save(engine, last, {"note": 1})
    weights = engine.full_weights()
    engine.close()
    return [*numbers, *(float(w.double().sum()) for w in weights.values())] if world.is_main else numbers


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_resumed_at_the_same_size_and_stage_is_bit_identical(tmp_path: Path, stage: int, precision: str) -> None:
    options = {"stage": stage, "precision": precision, "dropout": 0.5, "frozen": True}
    whole = run_on_ranks(2, train, directory=None, first=0, last=BEFORE + AFTER, **options)
    run_on_ranks(2, train, directory=tmp_path, first=0, last=BEFORE, **options)
    rest = run_on_ranks(2, train, directory=tmp_path, first=BEFORE, last=BEFORE + AFTER, **options)
    for one, other in zip(whole, rest, strict=True):
        assert one[2 * BEFORE :] == other


def test_a_process_that_trained_at_stage_3_trains_as_a_fresh_one(words: tuple[str, ...], tmp_path: Path) -> None:
    """DeepSpeed replaces torch's linear there, which multiplies otherwise where a weight is tied and transposed."""
    keys = {"task.objectives.mrfr.ratio": 1000, "run.steps": 3}  # that objective's head is tied
    found = []
    for name, stage in (("fresh", 0), ("between", 3), ("again", 0)):
        run_on_ranks(1, run_job, **tiny_run(words, tmp_path / name, stage, "fp32", **keys))
        found.append((curve(tmp_path / name), (tmp_path / name / "model" / "model.safetensors").read_bytes()))
    assert found[0] == found[2]


@pytest.mark.parametrize("source", STAGES)
@pytest.mark.parametrize(("ranks_before", "ranks_after"), [(2, 1), (1, 2), (2, 2), (2, 3)])
def test_resumed_at_any_size_and_stage_walks_the_same_curve(
    tmp_path: Path, source: int, ranks_before: int, ranks_after: int
) -> None:
    whole = run_on_ranks(ranks_before, train, stage=source, directory=None, first=0, last=BEFORE + AFTER)[0]
    run_on_ranks(ranks_before, train, stage=source, directory=tmp_path, first=0, last=BEFORE)
    for target in STAGES:
        found = run_on_ranks(ranks_after, train, stage=target, directory=tmp_path, first=BEFORE, last=BEFORE + AFTER)
        assert found[0] == pytest.approx(whole[2 * BEFORE :], abs=1e-5), f"stage {source} to {target}"


@pytest.mark.parametrize(
    ("before", "after"), [((2, True), (3, False)), ((3, False), (3, True)), ((3, True), (2, True))]
)
def test_offloaded_states_are_saved_and_loaded(
    tmp_path: Path, before: tuple[int, bool], after: tuple[int, bool]
) -> None:
    options = {"stage": before[0], "offload": before[1]}
    whole = run_on_ranks(2, train, directory=None, first=0, last=BEFORE + AFTER, **options)[0]
    run_on_ranks(2, train, directory=tmp_path, first=0, last=BEFORE, **options)
    options = {"stage": after[0], "offload": after[1]}
    rest = run_on_ranks(2, train, directory=tmp_path, first=BEFORE, last=BEFORE + AFTER, **options)[0]
    assert rest == pytest.approx(whole[2 * BEFORE :], abs=1e-5)


def save_and_compare(world: World, stage: int, directory: Path) -> None:
    engine = engine_of(world, stage, frozen=True)
    engine.train_step(split_step(0, world, 1), 0.01)
    path = checkpoints_of(directory, world).save(engine, 1)
    weights = engine.full_weights()
    engine.close()
    if world.is_main:
        read = read_weights(path)
        assert read.keys() == weights.keys()
        for name in weights:
            assert torch.equal(read[name], weights[name])


@pytest.mark.parametrize("stage", STAGES)
def test_weights_are_read_without_an_engine(tmp_path: Path, stage: int) -> None:
    run_on_ranks(2, save_and_compare, stage=stage, directory=tmp_path)


def load_as(world: World, directory: Path, **identity: Any) -> None:
    engine = engine_of(world, 1)
    try:
        checkpoints_of(directory, world, **identity).load_newest(engine)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"data": "e"}, r"was made with another data \(d, now e\); restore it or start a new run in another run.dir"),
        ({"model": {"layer": {"width": 8}}}, r"another model \(m, now \{'layer': "),
        ({"batch.size": 64}, r"another batch.size \(absent, now 64\)"),
    ],
)
def test_another_model_data_or_batch_is_refused_by_name(tmp_path: Path, other: dict[str, Any], said: str) -> None:
    run_on_ranks(2, train, stage=1, directory=tmp_path, first=0, last=1)
    with pytest.raises(CheckpointError, match=said):
        run_on_ranks(2, load_as, directory=tmp_path, **other)


def resume_noting(world: World, directory: Path, **changed: Any) -> tuple[int, list[str]]:
    engine = engine_of(world, 1)
    notes: list[str] = []
    try:
        settings = {"precision": "fp32", "optimizer": {"kind": "adamw", "learning_rate": 0.1}, **changed}
        state = checkpoints_of(directory, world, settings=settings).load_newest(engine, notes.append)
        return (state.step if state else 0), notes
    finally:
        engine.close()


def save_steps(world: World, directory: Path, steps: tuple[int, ...] = (1, 2), keep: int = 2) -> None:
    engine = engine_of(world, 1)
    settings = {"precision": "fp32", "optimizer": {"kind": "adamw", "learning_rate": 0.1}}
    for step in steps:
        checkpoints_of(directory, world, settings=settings, keep=keep).save(engine, step)
    engine.close()


def test_what_changed_is_told(tmp_path: Path) -> None:
    run_on_ranks(2, save_steps, directory=tmp_path)
    assert run_on_ranks(2, resume_noting, directory=tmp_path) == [(2, []), (2, [])]
    changed = {"precision": "bf16", "optimizer": {"kind": "adamw", "learning_rate": 0.2}}
    (_, notes), (_, none) = run_on_ranks(2, resume_noting, directory=tmp_path, **changed)
    assert notes == [
        "changed since the checkpoint of step 2, and used from here on: precision (fp32, now bf16), "
        "optimizer.learning_rate (0.1, now 0.2)"
    ]
    assert none == []


def test_a_checkpoint_of_another_format_is_not_taken_for_damaged(tmp_path: Path) -> None:
    run_on_ranks(2, save_steps, directory=tmp_path)
    (tmp_path / "step-00000002" / "state.json").write_text('{"format": 1}')
    with pytest.raises(CheckpointError, match="has format 1, and this version of vlp reads"):
        run_on_ranks(2, resume_noting, directory=tmp_path)


def test_a_damaged_checkpoint_is_not_kept_for_the_newest(tmp_path: Path) -> None:
    run_on_ranks(2, save_steps, directory=tmp_path, steps=(4, 8))
    damage(tmp_path / "step-00000008" / "rank-00001.safetensors", "flipped")
    (tmp_path / ".step-00000002.removed").mkdir()
    run_on_ranks(2, save_steps, directory=tmp_path, steps=(5,), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_facts_are_amended(tmp_path: Path) -> None:
    run_on_ranks(2, amend, directory=tmp_path)
    assert run_on_ranks(1, facts_of, directory=tmp_path) == [{"best": 2}]


def amend(world: World, directory: Path) -> None:
    save_steps(world, directory)
    checkpoints_of(directory, world).amend(2, {"best": 2})


def facts_of(world: World, directory: Path) -> dict[str, Any]:
    engine = engine_of(world, 3)
    state = checkpoints_of(directory, world).load_newest(engine)
    engine.close()
    assert state is not None
    return state.facts


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("file", ["rank-00001.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, how: str, file: str) -> None:
    run_on_ranks(2, save_steps, directory=tmp_path)
    damage(tmp_path / "step-00000002" / file, how if file != "state.json" else "truncated")
    (step, notes), (other, none) = run_on_ranks(2, resume_noting, directory=tmp_path)
    assert step == other == 1
    assert "step-00000002" in notes[0]
    assert len(notes) == 1
    assert none == []
    damage(tmp_path / "step-00000001" / "rank-00000.safetensors", how)
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        run_on_ranks(2, resume_noting, directory=tmp_path)


def fail_to_write(world: World, directory: Path) -> None:
    engine = engine_of(world, 1)
    checkpoints = checkpoints_of(directory, world)
    checkpoints.save(engine, 1)
    from vlp.train import checkpoint

    working = checkpoint.write_tensors

    def full(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        if world.rank == 1:
            raise OSError(28, "No space left on device")
        return working(path, tensors)

    checkpoint.write_tensors = full
    try:
        checkpoints.save(engine, 2)
    finally:
        checkpoint.write_tensors = working
        engine.close()


def test_a_full_disk_on_one_rank_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not be written: rank 1: .*No space left"):
        run_on_ranks(2, fail_to_write, directory=tmp_path)
    assert newest(tmp_path) == tmp_path / "step-00000001"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
