"""Finding and refusing checkpoints; saving and loading over ranks is in tests/distributed/test_resume.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlp.data.build import checksum_of
from vlp.errors import CheckpointError
from vlp.train.checkpoint import CheckpointConfig, _compare_shapes, superseded
from vlp.train.checkpointfiles import DamagedCheckpoint, newest, read_state, read_weights, verify, write_state


def make(directory: Path, step: int = 1) -> Path:
    """A checkpoint of two ranks that cut one parameter unevenly."""
    path = directory / f"step-{step:08d}"
    path.mkdir(parents=True)
    whole = torch.arange(6.0)
    save_file({"weight/a@0": whole[:2]}, path / "rank-00000.safetensors")
    save_file({"weight/a@2": whole[2:], "kept/b@0": torch.ones(3)}, path / "rank-00001.safetensors")
    files = {file.name: {"bytes": file.stat().st_size, "checksum": checksum_of(file)} for file in path.iterdir()}
    state = {"format": 3, "step": step, "parameters": {"a": [2, 3]}, "files": files}
    write_state(path, state)
    return path


def test_weights_are_put_together_from_all_ranks(tmp_path: Path) -> None:
    weights = read_weights(make(tmp_path))
    assert torch.equal(weights["a"], torch.arange(6.0).view(2, 3))
    assert torch.equal(weights["b"], torch.ones(3))


def test_the_newest_complete_one_is_found(tmp_path: Path) -> None:
    assert newest(tmp_path / "nothing") is None
    for step in (9, 100, 20):
        make(tmp_path, step)
    (tmp_path / ".step-00000200.partial").mkdir()
    (tmp_path / "step-00000300").mkdir()  # no state.json: not complete
    assert newest(tmp_path) == tmp_path / "step-00000100"


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    file = path / "rank-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"rank-00001.safetensors: has \d+ bytes instead of \d+"):
        read_state(path)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = make(tmp_path)
    file = path / "rank-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    state = read_state(path)
    verify(path, state, slice(0, None, 2))  # the other rank's share is whole
    with pytest.raises(DamagedCheckpoint, match=r"rank-00001.safetensors: its checksum"):
        verify(path, state, slice(1, None, 2))


def test_the_newest_the_best_and_the_milestones_are_kept() -> None:
    found = [Path(f"step-{step:08d}") for step in range(10, 100, 10)]

    def removed(best: int | None = None, **config: int) -> list[int]:
        return [int(path.name[5:]) for path in superseded(found, CheckpointConfig(**config), best)]  # type: ignore[arg-type]

    assert removed(keep=2) == [10, 20, 30, 40, 50, 60, 70]
    assert removed(keep=2, keep_every=30) == [10, 20, 40, 50, 70]
    assert removed(best=20, keep=2, keep_every=30) == [10, 40, 50, 70]
    assert removed(keep=20) == []


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    (path / "rank-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not a complete checkpoint, .*rank-00000.safetensors is missing"):
        read_state(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": 3, "files": 3}'])
def test_a_state_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    path = make(tmp_path)
    (path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state.json: cannot be read"):
        read_state(path)


def test_a_changed_state_is_found(tmp_path: Path) -> None:
    path = make(tmp_path)
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"step": 1', '"step": 9'))
    with pytest.raises(DamagedCheckpoint, match=r"state.json: its checksum"):
        read_state(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    (path / "state.json").write_text('{"format": 2}')
    with pytest.raises(CheckpointError, match=r"has format 2, and this version of vlp reads 3"):
        read_state(path)


def test_a_hole_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    state = read_state(path)
    del state["files"]["rank-00000.safetensors"]
    write_state(path, state)
    with pytest.raises(CheckpointError, match="'weight/a' is incomplete"):
        read_weights(path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="parameter 'b' is missing in the checkpoint"):
        _compare_shapes(tmp_path, {"a": [1]}, {"a": [1], "b": [1]})
    with pytest.raises(CheckpointError, match=r"'a' is \[2\], the model has \[1\]"):
        _compare_shapes(tmp_path, {"a": [2]}, {"a": [1]})
