"""How far a long evaluation is."""

import pytest

from vlp.inference import Progress


def test_every_tenth_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet_seconds=0)
    for done in range(1, 101):
        progress(done, 100)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "evaluated 10 of 100 batches"
    assert said[-1] == "evaluated 100 of 100 batches"
    assert len(said) == 10


def test_a_short_evaluation_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for done in range(1, 4):
        progress(done, 3)
    assert capsys.readouterr().err == ""


def test_a_second_pass_counts_anew(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet_seconds=0)
    for _ in range(2):
        for done in range(1, 3):
            progress(done, 2)
    assert capsys.readouterr().err.count("evaluated 1 of 2") == 2
