"""A published checkpoint into a directory of ours, and back.

The directory holds `config.json` and `model.safetensors`; `unused.safetensors` with the tensors that our model has no
use for; and `conversion.json`, which says what became of every name, so that the way back is the identity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlp.config import Config, read_json
from vlp.errors import CheckpointError
from vlp.models.convert.account import Account, Plan, account, plan, plan_of, same, wrapper_of
from vlp.models.convert.family import Family
from vlp.models.model import ModelConfig, read_config, read_weights, save_pretrained
from vlp.models.tensorfile import read_tensors

UNUSED, RECORD = "unused.safetensors", "conversion.json"
WRAPPER = "module."
"""What data-parallel training puts before all names."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a published file."""

    file: Path
    tensors: Mapping[str, Tensor]
    prefix: str
    """What stands before all names there."""


class Record(Config):
    """`conversion.json`: where a model came from, and what is needed for the way back."""

    source: str
    """The kind of checkpoint."""
    asked: str
    """The kind that was asked for: another where authors' weights came under the library's names."""
    prefix: str = ""
    """What stood before all names."""
    tied: dict[str, str] = {}
    """Second names, and the tensor that each is."""
    renamed: dict[str, str] = {}
    """Tensors that stood there under their second name only."""
    dtypes: dict[str, str] = {}
    """Types of the tensors that were not float32."""
    unused: dict[str, str] = {}
    """Tensors that our model has no use for, and why; they lie in `unused.safetensors`."""
    absent_heads: tuple[str, ...] = ()
    """Heads that such a checkpoint may hold, and this one did not."""


def read_checkpoint(file: Path) -> Checkpoint:
    """The tensors of a file, without the prefix of data-parallel training.

    Raises:
        CheckpointError: the file cannot be read, or may hold code.
    """
    tensors = read_tensors(file)
    prefix = WRAPPER if all(name.startswith(WRAPPER) for name in tensors) else ""
    return Checkpoint(file, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, prefix)


def convert_from(
    source: str,
    family: Family,
    checkpoint: Checkpoint,
    config: ModelConfig,
    counts: Mapping[str, int],
    out: Path,
    *,
    asked: str | None = None,
) -> tuple[Plan, Record]:
    """Write a published checkpoint as one of our models.

    Args:
        source: name of the kind of checkpoint.
        config: our model, without heads.
        counts: classes of heads that the authors' config says.
        asked: the kind that was asked for, if it is another.
    Raises:
        CheckpointError: the tensors do not fit the config; they are listed.
    """
    wrapper, where = wrapper_of(family, config, checkpoint.tensors), str(checkpoint.file)
    given = {name.removeprefix(wrapper): tensor for name, tensor in checkpoint.tensors.items()}
    renamed = {main: name for name, main in family.tied.items() if name in given and main not in given}
    first = {second: main for main, second in renamed.items()}
    tensors = {first.get(name, name): tensor for name, tensor in given.items()}
    pairs = [(tensors[name], tensors[main]) for name, main in family.tied.items() if {name, main} <= tensors.keys()]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    made = plan(family, config, shapes, where, untied=not all(same(*pair) for pair in pairs))
    found = account(family, made, tensors, counts, where)
    record = Record(
        source=source,
        asked=asked or source,
        prefix=checkpoint.prefix + wrapper,
        tied=dict(found.tied),
        renamed=renamed,
        dtypes={name: _dtype(tensor) for name, tensor in tensors.items() if tensor.dtype != torch.float32},
        unused=dict(found.unused),
        absent_heads=made.absent,
    )
    _write(out, made, found, tensors, record)
    return made, record


def to_ours(made: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors from theirs."""
    return {name: tensor for rule in made.rules for name, tensor in rule.to_ours(tensors).items()}


def to_theirs(made: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors from ours (or whatever else has their names and shapes: gradients)."""
    return {name: tensor for rule in made.rules for name, tensor in rule.to_theirs(tensors).items()}


def convert_to(target: str, family: Family, directory: Path, file: Path) -> dict[str, Tensor]:
    """Write a model of ours as a published checkpoint: safetensors if the file is called so, else torch's format.

    A model that came from such a checkpoint comes back as it was; another one has each tensor once, under its first
    name, and none that the authors' code never uses.

    Returns:
        the tensors that were written.
    Raises:
        CheckpointError: the directory holds no model, or one that such checkpoints have no place for.
    """
    config = read_config(directory)
    made = plan_of(family, config, str(directory))
    tensors = to_theirs(made, read_weights(directory))
    record = read_record(directory)
    if record is not None and record.source == target:
        tensors = _as_they_were(tensors, record, directory)
    _write_checkpoint(file, tensors)
    return tensors


def _as_they_were(tensors: dict[str, Tensor], record: Record, directory: Path) -> dict[str, Tensor]:
    if record.unused:
        unused = read_tensors(directory / UNUSED)
        if set(unused) != set(record.unused):
            raise CheckpointError(f"{directory / UNUSED}: does not hold the tensors that {RECORD} names")
        tensors |= unused
    tensors |= {name: tensors[source].clone() for name, source in record.tied.items()}
    typed = {n: t.to(getattr(torch, record.dtypes[n])) if n in record.dtypes else t for n, t in tensors.items()}
    return {record.prefix + record.renamed.get(name, name): tensor for name, tensor in typed.items()}


def read_record(directory: Path) -> Record | None:
    """How a directory's model was converted; None if it was not."""
    path = directory / RECORD
    if not path.is_file():
        return None
    try:
        values: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not the record of a conversion: {error}") from None
    return Record.parse(values, str(path))


def _write(out: Path, made: Plan, found: Account, tensors: Mapping[str, Tensor], record: Record) -> None:
    from safetensors.torch import save_file

    save_pretrained(out, made.config, to_ours(made, tensors))
    (out / UNUSED).unlink(missing_ok=True)
    if found.unused:
        save_file({name: tensors[name].clone().contiguous() for name in found.unused}, out / UNUSED)
    (out / RECORD).write_text(json.dumps(record.plain(), indent=1) + "\n", encoding="utf-8")


def _write_checkpoint(file: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    own = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if file.suffix == ".safetensors":
        save_file(own, file)
    else:
        torch.save(own, file)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
