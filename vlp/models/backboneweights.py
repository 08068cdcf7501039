"""A timm backbone's weights out of a file, every tensor accounted for; and the same at another image size."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlp.errors import CheckpointError
from vlp.models.backbone import Backbone, PixelSource
from vlp.models.tensorfile import first_of, misfits, read_tensors
from vlp.models.timmnetwork import KEY, plain_names, plain_network


def load_backbone(network: nn.Module, source: PixelSource) -> None:
    """Fill a backbone with the weights of `source.weights`, which are named as timm's checkpoints are.

    What the file holds beyond the backbone (a classifier, stages behind the last that is used) is left out. Tables of
    positions are interpolated to the size of `source`.

    Raises:
        CheckpointError: the file cannot be read, or lacks tensors, or has them in other shapes; the first are named.
    """
    assert source.weights is not None
    path = Path(source.weights)
    fit(network, source, read_tensors(path), f"{KEY}.weights: {path}")


def fit(network: nn.Module, source: PixelSource, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load tensors of timm's names into a network made for `source`.

    Raises:
        CheckpointError: tensors are missing or of another shape; `where` begins the sentence.
    """
    plain = plain_network(source)
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    try:
        names = plain_names(list(wanted), plain.state_dict())
    except LookupError as error:
        raise CheckpointError(f"{where}: timm's '{source.backbone}' has no name for {error}") from None
    given = _filtered(dict(tensors), plain, where)
    own = {names[name]: tensor for name, tensor in wanted.items()}
    wrong = misfits(own, {name: given[name] for name in own if name in given})
    if wrong:
        raise CheckpointError(f"{where} does not fit '{source.backbone}': {first_of(wrong)}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[names[name]])


def at_size(backbone: Backbone, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of the same backbone, by our names, with its positions interpolated to this one's image size.

    Raises:
        CheckpointError: they are no weights of this backbone.
    """
    own = backbone.network.state_dict()
    if all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in own.items()):
        return dict(tensors)
    plain = plain_network(backbone.source)
    try:
        names = plain_names([name for name in own if name in tensors], plain.state_dict())
    except LookupError:
        return dict(tensors)
    changed = _filtered({names[name]: tensors[name] for name in names}, plain, where)
    return {name: changed[names[name]] for name in names if names[name] in changed}


def _filtered(tensors: dict[str, Tensor], plain: Any, where: str) -> dict[str, Tensor]:
    """The tensors as timm would load them: older names brought up to date, positions interpolated to the size."""
    change = getattr(sys.modules[type(plain).__module__], "checkpoint_filter_fn", None)
    if change is None:
        return tensors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of how timm interpolates
            changed: dict[str, Tensor] = change(tensors, plain)
    except (KeyError, RuntimeError, ValueError, AssertionError, AttributeError, IndexError, TypeError) as error:
        raise CheckpointError(f"{where}: no weights of this backbone: {type(error).__name__} {error}") from None
    return changed
