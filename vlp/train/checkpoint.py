"""Checkpoints by parameter name: atomic, without pickle, loadable at every ZeRO stage and world size.

A checkpoint is a directory `step-00000100` with one safetensors file per rank and `state.json`. A rank writes the
pieces it holds as `<kind>/<parameter name>@<first element>`; loading reads the ranges that the new ranks hold, from
whichever files have them, so nobody ever gathers a whole model. Data and random numbers have no state: both derive
from the step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vlp.config import Config
from vlp.distributed import World, barrier, share, sum_over_ranks
from vlp.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from vlp.train.engine import Engine

FORMAT = 1
STATE_FILE = "state.json"


class CheckpointConfig(Config):
    """When checkpoints are written and which are kept."""

    every: int | None = Field(1000, ge=1)
    """Steps between checkpoints; none writes only the last one."""
    keep: int = Field(3, ge=1)
    """How many of the newest stay on disk."""


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """What a checkpoint says of itself."""

    step: int
    """Steps done."""
    skipped_steps: int
    fingerprints: dict[str, str]
    facts: dict[str, Any]


def completed(directory: Path) -> list[Path]:
    """The complete checkpoints of a directory, oldest first. Partial ones have another name."""
    found = [path for path in directory.glob("step-*") if (path / STATE_FILE).is_file()]
    return sorted(found, key=lambda path: path.name)


def newest(directory: Path) -> Path | None:
    """The newest complete checkpoint, if any."""
    return next(reversed(completed(directory)), None)


def read_state(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint's `state.json`, after checking that the files it names are there and whole.

    Raises:
        CheckpointError: not a checkpoint, of another format, or a file is missing or has another size.
    """
    try:
        state: dict[str, Any] = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {state['format']} is unknown to this version of vlp; update vlp")
        for name, size in state["files"].items():
            actual = (path / name).stat().st_size
            if actual != size:
                raise CheckpointError(f"{path / name}: has {actual} bytes instead of {size}; resume from an older one")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is not a complete checkpoint, {error.filename} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / STATE_FILE}: cannot be read: {error!r}; resume from an older one") from None
    return state


class Checkpoints:
    """Writes and loads the checkpoints of a run.

    Args:
        directory: holds the checkpoints; shared by all nodes.
        fingerprints: what a resumed run must have in common with this one (`model`, `data`, `batch`, ...).
    """

    def __init__(
        self, directory: Path, config: CheckpointConfig, world: World, fingerprints: Mapping[str, str]
    ) -> None:
        self.directory = directory
        self.config = config
        self._world = world
        self._fingerprints = dict(fingerprints)

    def save(self, engine: Engine, step: int, facts: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint after `step` steps; collective.

        Raises:
            CheckpointError: a rank could not write (disk full, ...); what was there before is untouched.
        """
        final = self.directory / f"step-{step:08d}"
        partial = self.directory / f".{final.name}.partial"
        files = _own_tensors(engine, self._world)  # collective at stage 3, so outside the try
        error = self._attempt(lambda: self._clear(partial), main_only=True)
        error = error or self._attempt(lambda: _write(partial / _file(self._world.rank), files))
        if not error:
            state = self._state(engine, step, dict(facts or {}))
            error = self._attempt(lambda: self._finish(partial, final, state), main_only=True)
        if error:
            if self._world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            barrier(self._world)
            raise CheckpointError(f"{final}: could not be written: {error}; free some space and resume")
        return final

    def _attempt(self, act: Any, *, main_only: bool = False) -> str:
        """Do something on this rank (or on rank 0 only) and tell all ranks whether it worked; doubles as a barrier."""
        import torch

        message = ""
        try:
            if self._world.is_main or not main_only:
                act()
        except Exception as error:  # any failure must reach the other ranks, or they would wait for ever
            message = f"rank {self._world.rank}: {error}"
        # Reduced on every rank, whether or not it failed: a rank that left early would hang the others.
        failed = sum_over_ranks(torch.tensor([float(bool(message))], device=self._world.device)).item()
        return next(filter(None, share(message, self._world))) if failed else ""

    def _clear(self, partial: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for left_over in self.directory.glob(".step-*.partial"):
            shutil.rmtree(left_over)
        partial.mkdir()

    def _state(self, engine: Engine, step: int, facts: dict[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": step,
            "adam_steps": engine.states.steps,
            "skipped_steps": engine.skipped_steps,
            "fingerprints": self._fingerprints,
            "facts": facts,
            "made_by": {"world_size": self._world.size, "zero_stage": engine.stage, "precision": engine.precision},
            "parameters": engine.shapes(),
        }

    def _finish(self, partial: Path, final: Path, state: dict[str, Any]) -> None:
        names = [_file(rank) for rank in range(self._world.size)]
        state["files"] = {name: (partial / name).stat().st_size for name in names}
        with (partial / STATE_FILE).open("w", encoding="utf-8") as file:
            json.dump(state, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(partial)
        if final.exists():  # the same step again, after resuming from an older one
            shutil.rmtree(final)
        partial.rename(final)
        _sync_directory(self.directory)
        for old in completed(self.directory)[: -self.config.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load_newest(self, engine: Engine) -> CheckpointState | None:
        """Load the newest complete checkpoint, or none if there is none; collective."""
        import torch

        path = newest(self.directory)
        # Rank 0 decides: on a network file system the others may see the directory late.
        own = float(path.name.removeprefix("step-")) if path and self._world.is_main else -1.0 * self._world.is_main
        step = int(sum_over_ranks(torch.tensor([own], dtype=torch.float64, device=self._world.device)).item())
        return None if step < 0 else self.load(engine, self.directory / f"step-{step:08d}")

    def load(self, engine: Engine, path: Path) -> CheckpointState:
        """Set an engine to a checkpoint, whatever stage and world size made it; collective.

        Raises:
            CheckpointError: damaged, or of another model, data or batch; the message names which.
        """
        state = read_state(path)
        for name, value in self._fingerprints.items():
            if state["fingerprints"].get(name) != value:
                raise CheckpointError(
                    f"{path}: was made with another {name} ({state['fingerprints'].get(name)}, now {value}); "
                    f"restore the {name} or start a new run in another run.dir"
                )
        _compare_shapes(path, state["parameters"], engine.shapes())
        with _Reader(path, list(state["files"])) as reader:
            for piece in engine.states.pieces():
                for kind, values in piece.values.items():
                    values.copy_(reader.range(kind, piece.name, piece.start, piece.length))
            engine.set_untrained({name: reader.whole("kept", name) for name in engine.untrained_names()})
        engine.states.set_steps(state["adam_steps"])
        engine.states.refresh_working_weights()
        engine.skipped_steps = state["skipped_steps"]
        barrier(self._world)
        return CheckpointState(state["step"], state["skipped_steps"], state["fingerprints"], state["facts"])


def read_weights(path: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint by name, in fp32 where they were trained, and buffers; needs no engine and no GPU."""
    state = read_state(path)
    with _Reader(path, list(state["files"])) as reader:
        weights = {}
        for name, shape in state["parameters"].items():
            length = 1
            for size in shape:
                length *= size
            weights[name] = reader.range("weight", name, 0, length).view(shape)
        return weights | {name: reader.whole("kept", name) for name in reader.names("kept")}


def _file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _own_tensors(engine: Engine, world: World) -> dict[str, Tensor]:
    """What this rank writes. At stage 0, where all hold everything, parameters are dealt to the ranks."""
    own: dict[str, Tensor] = {}
    for index, piece in enumerate(engine.states.pieces()):
        if engine.stage > 0 or index % world.size == world.rank:
            own |= {f"{kind}/{piece.name}@{piece.start}": values for kind, values in piece.values.items()}
    kept = engine.untrained()
    if world.is_main:
        own |= {f"kept/{name}@0": tensor for name, tensor in kept.items()}
    return own


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    # Views of one flat buffer: safetensors wants each in storage of its own.
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _compare_shapes(path: Path, theirs: Mapping[str, list[int]], ours: Mapping[str, list[int]]) -> None:
    for name in sorted(theirs.keys() ^ ours.keys()):
        where = "this model" if name in theirs else "the checkpoint"
        raise CheckpointError(f"{path}: is of another model: parameter '{name}' is missing in {where}")
    for name, shape in ours.items():
        if list(theirs[name]) != list(shape):
            raise CheckpointError(f"{path}: is of another model: '{name}' is {theirs[name]}, the model has {shape}")


class _Reader:
    """Ranges of flattened tensors out of the files of all ranks."""

    def __init__(self, path: Path, files: list[str]) -> None:
        self._path = path
        self._names = files
        self._open: list[Any] = []
        self._pieces: dict[tuple[str, str], list[tuple[int, str, Any]]] = {}

    def __enter__(self) -> _Reader:
        from safetensors import SafetensorError, safe_open

        for name in self._names:
            try:
                file: Any = safe_open(self._path / name, framework="pt")
            except SafetensorError as error:
                raise CheckpointError(f"{self._path / name}: is damaged: {error}; resume from an older one") from None
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
            raise CheckpointError(f"{self._path}: '{kind}/{name}' is incomplete; resume from an older checkpoint")
        return result
