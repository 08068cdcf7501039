from __future__ import annotations

import pytest

from vlp.errors import CheckpointError, ConfigError, DataError, TrainingError, VlpError, nearest


def test_exit_codes_tell_wrong_use_from_a_failed_run() -> None:
    assert ConfigError.exit_code == 2
    assert {kind.exit_code for kind in (DataError, CheckpointError, TrainingError)} == {1}


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError, TrainingError])
def test_every_error_for_users_is_caught_as_one(kind: type[VlpError]) -> None:
    with pytest.raises(VlpError, match=r"^what is wrong$"):
        raise kind("what is wrong")


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("batchsize", ["batch_size", "steps"], " (did you mean 'batch_size'?)"),
        ("xyz", ["steps", "batch"], " (known: batch, steps)"),
        ("xyz", [], ""),
    ],
)
def test_nearest_gives_a_hint(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == hint
