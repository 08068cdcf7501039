"""Tiny pre-trained text models of transformers, with random weights, and our models of the same shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from tests.examples import REGIONS
from vlp.data.batch import collate
from vlp.models.model import ModelConfig, Network
from vlp.types import Batch, Example

WORDS, PLACES, DEPTH = 50, 20, 3
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": DEPTH,
    "intermediate_size": 24,
}
PRETRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {"max_position_embeddings": PLACES}),
    "roberta": (
        "Roberta",
        {"max_position_embeddings": PLACES + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
    ),
    "albert": ("Albert", {"max_position_embeddings": PLACES, "embedding_size": 8}),
    "distilbert": ("DistilBert", {"max_position_embeddings": PLACES}),
}
"""By architecture the prefix of its classes, and settings beside the sizes."""
RENAMED = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
OURS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {
        "layer": {"eps": 1e-5},
        "parts": [{"kind": "word"}, {"kind": "position"}, {"kind": "segment", "rows": 1}],
    },
    "albert": {"width": 8, "layer": {"activation": "gelu_tanh"}},
    "distilbert": {"parts": [{"kind": "word"}, {"kind": "position"}]},
}
"""By architecture what `text:` needs beside the sizes."""


def pretrained(kind: str, head: str = "Model", **changes: Any) -> nn.Module:
    """A transformers model with every parameter random."""
    name, settings = PRETRAINED[kind]
    given = {"vocab_size": WORDS, **SIZES, **settings, **changes}
    if kind == "distilbert":
        given = {RENAMED.get(key, key): value for key, value in given.items()}
        given["hidden_dim"] = given.pop("intermediate_size")
    config = getattr(transformers, f"{name}Config")(**given)
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{name}{head}")(config).eval()
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            noise = 0.3 * torch.randn_like(parameter)
            parameter.copy_(1 + noise if "norm" in own.lower() and own.endswith("weight") else noise)
    return model


def saved(folder: Path, kind: str, head: str = "Model", **changes: Any) -> nn.Module:
    """The same, saved into a folder as transformers saves it."""
    model = pretrained(kind, head, **changes)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def config_of(kind: str, blocks: list[dict[str, Any]] | None = None, **text: Any) -> ModelConfig:
    """A model whose text tower has the shape of the pre-trained one."""
    own = OURS[kind] | text
    layer = {"width": 16, "heads": 4, "ffn": 24, "eps": 1e-12, **OURS[kind].get("layer", {}), **text.get("layer", {})}
    tower = {"stream": "text", "repeat": DEPTH, "sublayers": ["self", "ffn"], "one_set": kind == "albert"}
    values = {
        "text": {"vocab_size": WORDS, "max_length": PLACES, **own, "layer": layer},
        "image": {
            "source": {"kind": "regions", "width": REGIONS.width, "classes": None},
            "parts": [{"kind": "feature"}],
        },
        "encoder": blocks or [tower],
        "heads": {"mlm": {"kind": "vocabulary", "activation": layer.get("activation", "gelu")}},
        "dropout": 0,
        "attention_dropout": 0,
    }
    return ModelConfig.parse(values, "test")


def model_of(kind: str, blocks: list[dict[str, Any]] | None = None, **text: Any) -> Network:
    torch.manual_seed(1)
    return Network(config_of(kind, blocks, **text)).eval()


def texts(*lengths: int) -> list[Tensor]:
    """Token ids, none of them of a special token."""
    draw = torch.Generator().manual_seed(2)
    return [torch.randint(5, WORDS, (length,), generator=draw) for length in lengths]


def packed(ids: list[Tensor]) -> Batch:
    nothing = [np.zeros(len(each), np.int64) for each in ids]
    made = [Example("", each.numpy(), zero > 0, zero, None) for each, zero in zip(ids, nothing, strict=True)]
    return collate(made, REGIONS, {})


def padded(ids: list[Tensor], padding: int) -> dict[str, Tensor]:
    """The same for transformers."""
    longest = max(map(len, ids))
    rows = [torch.nn.functional.pad(each, (0, longest - len(each)), value=padding) for each in ids]
    masks = [torch.arange(longest) < len(each) for each in ids]
    return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(masks).long()}
