"""The trials of each objective: what their captions say, and that each is a run that the configs allow."""

from __future__ import annotations

import shlex

import pytest

from data_tools.world.scene import GRID
from tests.benchmarks.objectives import TRIALS, command, look, place
from vlp.run import load_run


def test_each_cell_has_its_own_name_and_the_middle_none() -> None:
    names = [place({"cell": str(cell)}) for cell in range(GRID * GRID)]
    assert len(set(names)) == GRID * GRID
    assert (names[0], names[1], names[4], names[-1]) == ("above left", "above", "", "below right")


def test_a_look_is_size_colour_and_shape() -> None:
    assert look({"size": "large", "colour": "red", "shape": "circle", "cell": "4"}) == "large red circle"


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_is_a_run_and_so_is_the_one_that_it_is_compared_with(name: str) -> None:
    trial = TRIALS[name]
    for without in {"", trial.without}:
        kind, config, *overrides = shlex.split(command(name, without))
        run = load_run(config, overrides, kind)  # type: ignore[arg-type]
        assert run.run.steps == trial.steps
        assert run.data.without == (without or None)
    assert trial.without or 0 <= trial.level < 1


def test_a_hidden_patch_is_a_cell_of_the_world() -> None:
    _, config, *overrides = shlex.split(command("patch_feature"))
    source = load_run(config, overrides, "pretrain").model.image.source
    assert source.kind == "patches"
    assert source.size == GRID * source.patch
