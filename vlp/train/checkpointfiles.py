"""A checkpoint on disk: `step-00000100/` with one safetensors file per rank and `state.json`.

A file holds its rank's pieces as `<kind>/<parameter name>@<first element>`. `state.json` names every file with its size
and checksum, and is written last, so a directory that has one was complete.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlp.config import read_json
from vlp.data.arrays import write_whole
from vlp.data.build import checksum_of
from vlp.errors import CheckpointError
from vlp.train.ema import EMA

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 3
STATE_FILE = "state.json"
CHECKPOINTS = "checkpoints"
"""Where a run's directory has them."""


_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
"""What safetensors calls torch's types."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are not what was written; an older one may be whole."""


def completed(directory: Path) -> list[Path]:
    """The complete checkpoints of a directory, oldest first. Partial ones have another name."""
    found = [path for path in directory.glob("step-*") if (path / STATE_FILE).is_file()]
    return sorted(found, key=step_of)


def newest(directory: Path) -> Path | None:
    """The newest complete checkpoint, if any."""
    return next(reversed(completed(directory)), None)


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The steps done of a checkpoint, by its name."""
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def file_of(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def read_state(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint's `state.json`, after checking that the files it names are there and whole.

    Raises:
        DamagedCheckpoint: not a checkpoint, not what was written, or a file is missing or has another size.
        CheckpointError: of a format that this version does not know.
    """
    try:
        state: dict[str, Any] = read_json(path / STATE_FILE)
        if state["format"] != FORMAT:
            raise CheckpointError(f"{path}: has format {state['format']}, and this version of vlp reads {FORMAT}")
        if state.pop("checksum") != _seal(state):
            raise DamagedCheckpoint(f"{path / STATE_FILE}: its checksum is not the one that was written: it is damaged")
        for name, told in state["files"].items():
            actual = (path / name).stat().st_size
            if actual != told["bytes"]:
                raise DamagedCheckpoint(f"{path / name}: has {actual} bytes instead of {told['bytes']}")
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{path}: is not a complete checkpoint, {error.filename} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path / STATE_FILE}: cannot be read: {error!r}") from None
    return state


def verify(path: Path, state: dict[str, Any], share: slice = slice(None)) -> None:
    """Compare the checksums of (some of) a checkpoint's files.

    Raises:
        DamagedCheckpoint: a file holds other bytes than were written.
    """
    for name in sorted(state["files"])[share]:
        if checksum_of(path / name) != state["files"][name]["checksum"]:
            raise DamagedCheckpoint(f"{path / name}: its checksum is not the one that was written: the file is damaged")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write a rank's file to the disk; its size and checksum.

    The format is safetensors': the size of a header, the header, the bytes of the tensors. Its own writer wants each
    tensor in storage of its own, and pieces are views of flat buffers: all of a rank's states would be copied first.
    """
    import torch

    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "checksum": checksum_of(path)}


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write `state.json`, whole or not at all: after it the checkpoint counts."""
    sealed = state | {"checksum": _seal(state)}
    write_whole(path / STATE_FILE, json.dumps(sealed, indent=1).encode())
    sync_directory(path)


def _seal(state: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(state, sort_keys=True).encode(), digest_size=16).hexdigest()


def sync_directory(path: Path) -> None:
    """Make names in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint by name, in fp32 where they were trained, and buffers; needs no engine and no GPU.

    Where a running mean of the weights was kept, it is given instead of them.

    Raises:
        CheckpointError: damaged, or of another format.
    """
    state = read_state(path)
    verify(path, state)
    with Reader(path, list(state["files"])) as reader:
        kind = EMA if reader.names(EMA) else "weight"
        weights = {
            name: reader.range(kind, name, 0, math.prod(shape)).view(shape)
            for name, shape in state["parameters"].items()
        }
        return weights | {name: reader.whole("kept", name) for name in reader.names("kept")}


class Reader:
    """Ranges of flattened tensors out of the files of all ranks. Use as a context manager."""

    def __init__(self, path: Path, files: list[str]) -> None:
        self._path = path
        self._names = files
        self._open: list[Any] = []
        self._pieces: dict[tuple[str, str], list[tuple[int, str, Any]]] = {}

    def __enter__(self) -> Reader:
        from safetensors import SafetensorError, safe_open

        for name in self._names:
            try:
                file: Any = safe_open(self._path / name, framework="pt")
            except SafetensorError as error:
                raise DamagedCheckpoint(f"{self._path / name}: is damaged: {error}") from None
            self._open.append(file)
            for key in file.keys():  # noqa: SIM118  # not a mapping
                kind, _, rest = key.partition("/")
                parameter, _, start = rest.rpartition("@")
                self._pieces.setdefault((kind, parameter), []).append((int(start), key, file))
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open:
            file.__exit__(None, None, None)

    def names(self, kind: str) -> list[str]:
        return [name for of_kind, name in self._pieces if of_kind == kind]

    def whole(self, kind: str, name: str) -> Tensor:
        """A tensor that one rank wrote whole, in its own shape and type."""
        pieces = self._pieces.get((kind, name))
        if not pieces:
            raise CheckpointError(f"{self._path}: is of another model: '{name}' is missing")
        _, key, file = pieces[0]
        tensor: Tensor = file.get_tensor(key)
        return tensor

    def range(self, kind: str, name: str, start: int, length: int) -> Tensor:
        """Elements start .. start + length of a flattened tensor, fp32."""
        import torch

        result = torch.empty(length, dtype=torch.float32)
        filled = 0
        for first, key, file in self._pieces.get((kind, name), []):
            view = file.get_slice(key)
            held = view.get_shape()[0]
            low, high = max(first, start), min(first + held, start + length)
            if low < high:
                result[low - start : high - start] = view[low - first : high - first]
                filled += high - low
        if filled != length:
            raise DamagedCheckpoint(f"{self._path}: '{kind}/{name}' is incomplete")
        return result
