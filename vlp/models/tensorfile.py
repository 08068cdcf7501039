"""Tensors by name out of files that others wrote: safetensors, or a pickle that is read only if it holds no code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlp.config import read_json
from vlp.errors import CheckpointError

WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
"""Keys under which a training program's checkpoint holds the tensors."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of the weights in a directory as transformers writes them, on the CPU.

    In a directory safetensors are preferred; a large model's weights may lie in several files with an index.

    Raises:
        CheckpointError: nothing there, damaged, or a pickle that holds more than plain data (it is not run).
    """
    if not path.is_dir():
        return _read_file(path)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return _read_file(path / name)
        if (path / f"{name}.index.json").is_file():
            return _read_parts(path / f"{name}.index.json")
    raise CheckpointError(f"{path}: holds neither model.safetensors nor pytorch_model.bin")


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors from being a model's weights, a phrase each, in the order of the model's names.

    Args:
        own: the model's.
        given: those that should fill it.
    """
    found = []
    for name, tensor in own.items():
        if name not in given:
            found.append(f"{name} is missing")
        elif given[name].shape != tensor.shape:
            found.append(f"{name} is {list(given[name].shape)} and should be {list(tensor.shape)}")
    return found + [f"{name} is surplus" for name in given if name not in own]


def first_of(phrases: Sequence[str], most: int = 5) -> str:
    """The first phrases, and how many more there are."""
    more = f"; and {len(phrases) - most} more" if len(phrases) > most else ""
    return "; ".join(phrases[:most]) + more


def _read_parts(index: Path) -> dict[str, Tensor]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        parts = [index.parent / name for name in names]
        if any(part.parent != index.parent for part in parts):
            raise ValueError("it names files of other folders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not the index of a model's weights: {error}") from None
    return {name: tensor for part in parts for name, tensor in _read_file(part).items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix != ".safetensors":
        return _read_pickle(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own sentence advises to read the file all the same.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{path}: refused, since it may hold code: it is no pickle of plain tensors"
            f"{f' (it asks for {asked[1]})' if asked else ''}; "
            "convert it to safetensors on a machine where you trust it"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: cannot be read: {str(error).strip().split(chr(10))[0]}") from None
    return _tensors_of(values, path)


def _tensors_of(values: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which may hold them under a key of their own."""
    if isinstance(values, Mapping):
        for key in WRAPPERS:
            if isinstance(values.get(key), Mapping):
                return _tensors_of(values[key], path)
        found = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
        if found:
            return found
    raise CheckpointError(f"{path}: holds no tensors by name")
