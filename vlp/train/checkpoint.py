"""Checkpoints by parameter name: atomic, without pickle, loadable at every ZeRO stage and world size.

Each rank writes the pieces it holds; loading reads the ranges that the new ranks hold, from whichever files have them,
so nobody ever gathers a whole model. Data and random numbers have no state: both derive from the step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from vlp.config import Config
from vlp.distributed import World, barrier, share
from vlp.errors import CheckpointError
from vlp.train.changes import differences, listed
from vlp.train.checkpointfiles import (
    FORMAT,
    DamagedCheckpoint,
    Reader,
    completed,
    file_of,
    name_of,
    read_state,
    step_of,
    sync_directory,
    verify,
    write_state,
    write_tensors,
)
from vlp.train.ema import KINDS as MEANS
from vlp.train.queue import KIND as QUEUE

if TYPE_CHECKING:
    from torch import Tensor

    from vlp.train.engine import Engine

Note = Callable[[str], None]


class CheckpointConfig(Config):
    """When checkpoints are written and which are kept. One is always written at the end, on SIGTERM and on SIGUSR1."""

    every: int | None = Field(1000, ge=1)
    """Steps between checkpoints; null for none by steps."""
    minutes: float | None = Field(None, gt=0)
    """Minutes between checkpoints, whatever the steps; null for none by time."""
    keep: int = Field(3, ge=1)
    """How many of the newest stay on disk."""
    keep_every: int | None = Field(None, ge=1)
    """Checkpoints at multiples of so many steps stay for good."""
    keep_best: bool = False
    """Write one at every evaluation that is the best so far by `evaluation.metric`, and keep it."""


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """What a checkpoint says of itself."""

    step: int
    """Steps done."""
    facts: dict[str, Any]
    """What `Checkpoints.save` was given."""


class Checkpoints:
    """Writes and loads the checkpoints of a run.

    Args:
        directory: holds the checkpoints; shared by all nodes.
        identity: what a resumed run must have in common with this one (model, data, batch size, ...), plain data.
        settings: what it may change (optimizer, precision, ...) and is told of, plain data.
    """

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        world: World,
        identity: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.config = config
        self._world = world
        self._identity = _plain(identity)
        self._settings = _plain(settings or {})

    def save(self, engine: Engine, step: int, facts: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint after `step` steps, and remove those that need not be kept; collective.

        Args:
            facts: more to remember, plain data; `best_step`, if there, names a checkpoint that stays.
        Raises:
            CheckpointError: a rank could not write (disk full, ...); what was there before is untouched.
        """
        final = self.directory / name_of(step)
        partial = self.directory / f".{final.name}.partial"
        tensors = _own_tensors(engine, self._world)  # collective at stage 3, so outside the attempts
        own: dict[str, Any] = {}

        def write() -> None:
            own.update(write_tensors(partial / file_of(self._world.rank), tensors))

        error = self._attempt(lambda: self._clear(partial), main_only=True) or self._attempt(write)
        if not error:
            state = self._state(engine, step, dict(facts or {}))
            state["files"] = {file_of(rank): told for rank, told in enumerate(share(own, self._world))}
            error = self._attempt(lambda: self._finish(partial, final, state), main_only=True)
        if error:
            if self._world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            barrier(self._world)
            raise CheckpointError(f"{final}: could not be written: {error}; free some space and resume")
        return final

    def _attempt(self, act: Callable[[], None], *, main_only: bool = False) -> str:
        """Do something on this rank (or on rank 0 only) and tell all ranks whether it worked; doubles as a barrier."""
        message = ""
        try:
            if self._world.is_main or not main_only:
                act()
        except Exception as error:  # any failure must reach the other ranks, or they would wait for ever
            where = f"rank {self._world.rank}: " if self._world.size > 1 else ""
            message = f"{where}{error}"
        return next(filter(None, share(message, self._world)), "")

    def _clear(self, partial: Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for left_over in self.directory.glob(".step-*"):  # of a run that was killed while it saved or removed
            shutil.rmtree(left_over)
        partial.mkdir()

    def _state(self, engine: Engine, step: int, facts: dict[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": step,
            "adam_steps": engine.states.steps,
            "skipped_steps": engine.skipped_steps,
            "scaler": engine.scaler,
            "identity": self._identity,
            "settings": self._settings,
            "facts": facts,
            "made_by": {"world_size": self._world.size, "zero_stage": engine.stage, "precision": engine.precision},
            "parameters": engine.shapes(),
        }

    def _finish(self, partial: Path, final: Path, state: dict[str, Any]) -> None:
        write_state(partial, state)
        if final.exists():  # the same step again: this one was damaged, and the run resumed from an older one
            _remove(final)
        partial.rename(final)
        sync_directory(self.directory)
        self._tidy(state["step"], state["facts"])

    def _tidy(self, step: int, facts: Mapping[str, Any]) -> None:
        """Remove what need not be kept. Checkpoints of later steps were passed over as damaged: they would count as
        the newest."""
        found = completed(self.directory)
        past = [path for path in found if step_of(path) <= step]
        for path in [*superseded(past, self.config, facts.get("best_step")), *found[len(past) :]]:
            _remove(path)

    def amend(self, step: int, facts: Mapping[str, Any]) -> None:
        """Give the checkpoint of a step other facts, those of an evaluation after it; collective.

        Raises:
            CheckpointError: the disk is full, say; the checkpoint is as it was.
        """
        path = self.directory / name_of(step)

        def write() -> None:
            write_state(path, read_state(path) | {"facts": dict(facts)})
            self._tidy(step, facts)

        error = self._attempt(write, main_only=True)
        if error:
            raise CheckpointError(f"{path}: could not be written: {error}; free some space and resume")

    def load_newest(self, engine: Engine, note: Note = print) -> CheckpointState | None:
        """Load the newest checkpoint that is whole, or none if there is none; collective.

        Args:
            note: told of every damaged checkpoint that was passed over.
        Raises:
            CheckpointError: all are damaged, or the newest whole one is of another model, data or batch.
        """
        # Rank 0 decides which there are: on a network file system the others may see the directory late.
        steps: list[int] = share([step_of(path) for path in completed(self.directory)], self._world)[0]
        damaged = []
        for step in reversed(steps):
            path = self.directory / name_of(step)
            error = next(filter(None, share(self._damage(path), self._world)), "")
            if not error:
                return self.load(engine, path, note)
            damaged.append(path.name)
            if self._world.is_main:
                note(f"passed over a damaged checkpoint: {error}")
        if damaged:
            raise CheckpointError(
                f"{self.directory}: no checkpoint is whole ({', '.join(damaged)}); bring one back from a copy, or "
                "start again in another run.dir"
            )
        return None

    def _damage(self, path: Path) -> str:
        """What is wrong with a checkpoint, if anything. Each rank reads its share of the files, so that a checkpoint of
        many ranks is checked as fast as it was written."""
        try:
            verify(path, read_state(path), slice(self._world.rank, None, self._world.size))
        except (DamagedCheckpoint, OSError) as error:
            return str(error)
        return ""

    def load(self, engine: Engine, path: Path, note: Note = print) -> CheckpointState:
        """Set an engine to a checkpoint, whatever stage and world size made it; collective.

        Args:
            note: told of settings that have changed.
        Raises:
            CheckpointError: damaged, of another format, or of another model, data or batch; the message names which.
        """
        state = read_state(path)
        other = differences(state["identity"], self._identity)
        if other:
            raise CheckpointError(
                f"{path}: was made with another {listed(other)}; restore it or start a new run in another run.dir"
            )
        _compare_shapes(path, state["parameters"], engine.shapes())
        changed = differences(state["settings"], self._settings)
        if changed and self._world.is_main:
            note(f"changed since the checkpoint of step {state['step']}, and used from here on: {listed(changed)}")
        with Reader(path, list(state["files"])) as reader:
            kept = {kind for kind in MEANS if reader.names(kind)}
            for piece in engine.pieces():
                for kind, values in piece.values.items():
                    # A mean that the run did not keep before starts at the weights.
                    source = "weight" if kind in MEANS and kind not in kept else kind
                    values.copy_(reader.range(source, piece.name, piece.start, piece.length))
            engine.set_queue({name: reader.whole(QUEUE, name) for name in reader.names(QUEUE)})
            engine.untrained.set({name: reader.whole("kept", name) for name in engine.untrained.names()})
        engine.states.set_steps(state["adam_steps"])
        engine.states.refresh_working_weights()
        engine.skipped_steps = state["skipped_steps"]
        engine.scaler = state["scaler"]
        barrier(self._world)
        return CheckpointState(state["step"], state["facts"])


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As a file gives it back: lists for tuples, words for keys."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _remove(path: Path) -> None:
    """Remove a checkpoint; one that is half gone never counts as one."""
    hidden = path.with_name(f".{path.name}.removed")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def superseded(found: list[Path], config: CheckpointConfig, best_step: int | None = None) -> list[Path]:
    """Of complete checkpoints, oldest first, those that need not be kept."""

    def stays(path: Path) -> bool:
        return step_of(path) == best_step or bool(config.keep_every and step_of(path) % config.keep_every == 0)

    return [path for path in found[: -config.keep] if not stays(path)]


def _own_tensors(engine: Engine, world: World) -> dict[str, Tensor]:
    """What this rank writes. At stage 0, where all hold everything, parameters are dealt to the ranks."""
    own: dict[str, Tensor] = {}
    for index, piece in enumerate(engine.pieces()):
        if engine.stage > 0 or index % world.size == world.rank:
            own |= {f"{kind}/{piece.name}@{piece.start}": values for kind, values in piece.values.items()}
    kept = engine.untrained.values()
    if world.is_main:
        own |= {f"kept/{name}@0": tensor for name, tensor in kept.items()}
        own |= {f"{QUEUE}/{name}@0": tensor for name, tensor in engine.queue().items()}
    return own


def _compare_shapes(path: Path, theirs: Mapping[str, list[int]], ours: Mapping[str, list[int]]) -> None:
    for name in sorted(theirs.keys() ^ ours.keys()):
        where = "this model" if name in theirs else "the checkpoint"
        raise CheckpointError(f"{path}: is of another model: parameter '{name}' is missing in {where}")
    for name, shape in ours.items():
        if list(theirs[name]) != list(shape):
            raise CheckpointError(f"{path}: is of another model: '{name}' is {theirs[name]}, the model has {shape}")
