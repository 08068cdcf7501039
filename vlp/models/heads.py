"""Heads: what guesses from encoded states. Each is built from a config that a task writes into the model's.

Heads run on the rows that have a target, and on zero rows where there is none, so that every parameter takes part in
every micro-batch.

Shape suffixes: K rows; H width of the stream; V vocabulary; D region feature width; C classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlp.config import Config
from vlp.models.encoder import ACTIVATIONS
from vlp.types import Rows


class VocabularyHead(Config):
    """Scores of words: Linear, gelu, norm, then the word table (tied) and a bias. Source: Devlin et al. 2019, 3.1."""

    kind: Literal["vocabulary"] = "vocabulary"
    reads: Rows = "text"


class ClassHead(Config):
    """Scores of classes."""

    kind: Literal["classes"] = "classes"
    reads: Rows
    classes: int = Field(gt=0)
    inner: Literal["none", "same", "double"] = "none"
    """Layers before the last: none; Linear, gelu, norm of the stream's width; or of twice the width."""


class FeatureHead(Config):
    """A region's feature again: Linear, gelu, norm, then a projection to the feature's width."""

    kind: Literal["feature"] = "feature"
    reads: Rows = "image"
    width: int = Field(gt=0)
    tied: bool = False
    """Project by the transpose of the image embedding's feature projection (Chen et al. 2020, arXiv 1909.11740)."""


HeadConfig = Annotated[VocabularyHead | ClassHead | FeatureHead, Field(discriminator="kind")]


class Head(nn.Module):
    """Rows of states in, scores out.

    Args:
        config: which head.
        width: width of the states it reads.
        eps: LayerNorm's epsilon.
        tied: the weight [out, H] that a tied head projects by; it stays its owner's and is read at each call.
    """

    def __init__(self, config: HeadConfig, width: int, eps: float, tied: nn.Module | None) -> None:
        super().__init__()
        self.config = config
        inner = _inner_width(config, width)
        self.transform = nn.Identity() if inner == 0 else _Transform(width, inner, eps)
        self._tied = (tied,) if _is_tied(config) else ()  # a tuple, so that the owner's weight is not registered twice
        outputs = _outputs(config, tied)
        if self._tied:
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            self.output = nn.Linear(inner or width, outputs)

    def forward(self, x_KH: Tensor) -> Tensor:
        """Scores [K, V], [K, C] or features [K, D]."""
        x = self.transform(x_KH)
        if not self._tied:
            return self.output(x)  # type: ignore[no-any-return]
        (owner,) = self._tied
        assert owner is not None
        weight: Tensor = owner.weight  # type: ignore[assignment]
        return nn.functional.linear(x, weight.t() if isinstance(self.config, FeatureHead) else weight, self.bias)


class _Transform(nn.Module):
    """Linear, gelu, norm."""

    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, inner)
        self.norm = nn.LayerNorm(inner, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(ACTIVATIONS["gelu"](self.linear(x)))  # type: ignore[no-any-return]


def _inner_width(config: HeadConfig, width: int) -> int:
    if isinstance(config, ClassHead):
        return {"none": 0, "same": width, "double": 2 * width}[config.inner]
    return width


def _is_tied(config: HeadConfig) -> bool:
    return isinstance(config, VocabularyHead) or (isinstance(config, FeatureHead) and config.tied)


def _outputs(config: HeadConfig, tied: nn.Module | None) -> int:
    if isinstance(config, ClassHead):
        return config.classes
    if isinstance(config, FeatureHead):
        return config.width
    assert isinstance(tied, nn.Embedding)
    return tied.num_embeddings
