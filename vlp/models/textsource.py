"""A pre-trained text model as its authors left it: from the hub or a directory, named as its architecture names it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlp.config import read_json
from vlp.errors import CheckpointError, ConfigError, nearest
from vlp.models.hub import local_directory
from vlp.models.tensorfile import read_tensors
from vlp.models.textnames import ARCHITECTURES, Names

KEY = "model.text.weights"
TOKENIZER_FILES = ("*.json", "vocab.txt", "merges.txt", "*.model")
ACTIVATION_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
"""Transformers' names of activations, where ours are others."""


@dataclass(frozen=True)
class PretrainedText:
    """Config and tensors of a pre-trained text model."""

    source: str
    names: Names
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    """By the architecture's names, without the prefix that a model with a head puts before them."""

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of its `config.json`, by BERT's name for it."""
        return self.names.setting(self.config, key, default)

    @property
    def depth(self) -> int:
        """How many layers it has."""
        return int(self.setting("num_hidden_layers"))

    @property
    def activation(self) -> str:
        """Of its feed-forward networks, by our name."""
        theirs = str(self.setting("hidden_act"))
        return ACTIVATION_NAMES.get(theirs, theirs)

    @property
    def first_position(self) -> int:
        """The row of the position table that the first token takes."""
        return int(self.setting("pad_token_id", 1)) + 1 if self.names.after_padding else 0

    def layer(self, number: int) -> str:
        """What the names of a layer begin with."""
        groups = int(self.setting("num_hidden_groups", 1))
        return self.names.layer.format(layer=number, group=number * groups // self.depth)


def text_model_directory(source: str) -> Path:
    """Where the files of a hub id or a local directory lie."""
    return local_directory(source, TOKENIZER_FILES)


def has_tokenizer(directory: Path) -> bool:
    """Whether a tokenizer stands beside the weights."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))


def read_text_model(source: str) -> PretrainedText:
    """The model of a hub id or a local directory.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: its architecture is none of those we know.
    """
    directory = text_model_directory(source)
    path = directory / "config.json"
    try:
        config: dict[str, Any] = read_json(path)
        kind = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{KEY}.source: {path}: not the config of a text model: {error}") from None
    names = ARCHITECTURES.get(kind)
    if names is None:
        raise ConfigError(f"{KEY}.source: '{source}' is a '{kind}', which is not known{nearest(kind, ARCHITECTURES)}")
    tensors: dict[str, Tensor] = {}
    for name, tensor in read_tensors(directory).items():
        # Checkpoints of 2018 call a norm's parameters gamma and beta.
        modern = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))
        tensors |= _apart(modern.removeprefix(names.prefix), tensor, names)
    return PretrainedText(source, names, config, tensors)


def _apart(name: str, tensor: Tensor, names: Names) -> dict[str, Tensor]:
    """The tensors that stand one below the other in this one, or it alone."""
    for joined, parts in names.joined.items():
        stem, found, kind = name.rpartition(f"{joined}.")
        if found and tensor.dim():
            split = tensor.tensor_split(len(parts))
            return {f"{stem}{part}.{kind}": rows for part, rows in zip(parts, split, strict=True)}
    return {name: tensor}
