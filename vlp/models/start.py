"""The weights that a new model starts with: a trained model's, or a pre-trained text model's in its text layers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from vlp.errors import CheckpointError
from vlp.models.backboneweights import at_size
from vlp.models.model import Network, read_weights
from vlp.models.tensorfile import first_of, misfits
from vlp.models.textsource import read_text_model
from vlp.models.textweights import start_text


def start(model: Network, init: Path | None, new_heads: Collection[str] = ()) -> list[str]:
    """Fill a model whose weights are random.

    Args:
        init: directory of a trained model, whose weights it takes; by default what its config names (`text.weights`).
        new_heads: heads that stay new, because their classes stand for others than that model's.
    Returns:
        what was done, a line each for a log.
    Raises:
        CheckpointError, ConfigError: the weights are missing, or do not fit; the first tensors are named.
    """
    if init is not None:
        return start_from(model, init, new_heads)
    wanted = model.config.text.weights
    if wanted is None:
        return []
    account = start_text(model, read_text_model(wanted.source), wanted)
    model.image.copy_tables(model.text.tables)  # those that start as the text's
    return [account.sentence(wanted.source)]


def start_from(model: Network, directory: Path, new_heads: Collection[str] = ()) -> list[str]:
    """Take a trained model's weights; heads and projections of the pooler that it lacks stay new, and so do those of
    `new_heads`; heads that the task does not use are left out.

    A backbone's positions are interpolated where the model takes images of another size.
    """
    others = tuple(f"heads.{name}." for name in new_heads)
    read = _at_size(model, read_weights(directory))
    tensors = {name: tensor for name, tensor in read.items() if not name.startswith(others)}
    own = model.state_dict()
    new_parts = ("heads.", "pooler.")
    needed = {name: tensor for name, tensor in own.items() if name in tensors or not name.startswith(new_parts)}
    wrong = misfits(needed, {name: tensors[name] for name in needed if name in tensors})
    if wrong:
        raise CheckpointError(f"init: {directory} does not fit the model: {first_of(wrong)}")
    model.load_state_dict({**own, **{name: tensors[name] for name in own if name in tensors}})
    new = sorted({".".join(name.split(".")[:2]) for name in own if name not in tensors})
    left = sorted({".".join(name.split(".")[:2]) for name in tensors if name not in own})
    said = f"starts from {directory}"
    said += f"; new: {', '.join(new)}" if new else ""
    said += f"; has other answers or labels in {', '.join(sorted(new_heads))}" if new_heads else ""
    return [said + (f"; left out: {', '.join(left)}" if left else "")]


def _at_size(model: Network, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, backbone in model.image.backbones().items():
        start = f"image.{name}.network."
        inner = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        if inner:
            changed = at_size(backbone, inner, f"init: {name}")
            tensors = tensors | {start + key: tensor for key, tensor in changed.items()}
    return tensors
