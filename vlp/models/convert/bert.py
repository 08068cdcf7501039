"""Names that all checkpoints share which grew out of BERT's code: theirs to ours."""

from __future__ import annotations

from typing import Any

from vlp.errors import ConfigError
from vlp.models.convert.family import Values
from vlp.models.convert.names import Names, Shaped, Table, below

ATTENTION: Table = {
    "self.query": "attention.query",
    ("self.key", "self.value"): "attention.key_value",
    "output.dense": "attention.output",
    "output.LayerNorm": "norm",
}
FEED_FORWARD: Table = {
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
}
TEXT: Table = {
    "word_embeddings": "text.parts.word.table",
    "position_embeddings": "text.parts.position.table",
    "token_type_embeddings": "text.parts.segment.table",
    "LayerNorm": "text.combine.norm",
}
WORDS: Table = {
    "transform.dense": "transform.linear",
    "transform.LayerNorm": "transform.norm",
    "bias": "bias",
}
"""The vocabulary head; its decoder is the word table."""


def layer(theirs: str, number: int, attention: str, owner: str) -> dict[Names, Names | Shaped]:
    """A BERT layer as our block of that number: its attention sublayer, and whose weights they are."""
    ours = f"encoder.blocks.{number}.sublayers"
    return {
        **below(ATTENTION, f"{theirs}.attention", f"{ours}.{attention}.weights.{owner}"),
        **below(FEED_FORWARD, theirs, f"{ours}.ffn.weights.{owner}"),
    }


def layers(theirs: str, numbers: range, attention: str, owner: str) -> dict[Names, Names | Shaped]:
    """Their layers from 0 on as our blocks of these numbers."""
    table: dict[Names, Names | Shaped] = {}
    for count, number in enumerate(numbers):
        table |= layer(f"{theirs}.{count}", number, attention, owner)
    return table


def text_layer(values: Values, eps: float = 1e-12) -> dict[str, Any]:
    """The sizes of BERT's layers in our words."""
    return {
        "width": values["hidden_size"],
        "heads": values["num_attention_heads"],
        "ffn": values["intermediate_size"],
        "activation": activation(values["hidden_act"]),
        "eps": eps,
    }


def text(values: Values, eps: float = 1e-12, **segment: Any) -> dict[str, Any]:
    """BERT's embedding in our words."""
    return {
        "vocab_size": values["vocab_size"],
        "max_length": values["max_position_embeddings"],
        "layer": text_layer(values, eps),
        "parts": [
            {"kind": "word"},
            {"kind": "position"},
            {"kind": "segment", "rows": values["type_vocab_size"], **segment},
        ],
    }


def habits(values: Values) -> dict[str, float]:
    """Drop rates and initial weights in our words."""
    return {
        "dropout": values["hidden_dropout_prob"],
        "attention_dropout": values["attention_probs_dropout_prob"],
        "init_std": values["initializer_range"],
    }


_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "swish": "silu", "silu": "silu", "gelu_new": "gelu_tanh"}


def activation(name: str) -> str:
    """An activation in our words.

    Raises:
        ConfigError: there is none of that name here.
    """
    if name not in _ACTIVATIONS:
        raise ConfigError(f"the activation '{name}' is not known here, it should be one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
