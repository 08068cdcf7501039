"""Heads: what guesses from encoded states. Each is built from a config that a task writes into the model's.

Heads run on the rows that have a target, and on zero rows where there is none, so that every parameter takes part in
every micro-batch.

Shape suffixes: K rows; H width of the stream; V vocabulary; D region feature width; C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vlp.config import Config
from vlp.models.blocks import Activation
from vlp.models.linear import Linear, linear
from vlp.models.sublayers import ACTIVATIONS
from vlp.types import Rows


class InnerConfig(Config):
    """The layers between the states and a head's last linear: Linear, an activation, a norm."""

    activation: Activation = "gelu"
    """The non-linearity."""
    norm: Literal["last", "before_activation", "none"] = "last"
    """Where LayerNorm stands: after the activation, before it, or nowhere."""
    eps: float | None = Field(None, gt=0)
    """LayerNorm's epsilon; null for the stream's."""
    inner_of: str | None = None
    """The head whose inner layers this one uses, instead of having its own."""


class VocabularyHead(InnerConfig):
    """Scores of words: inner layers, then the word table and a bias. Source: Devlin et al. 2019, 3.1."""

    kind: Literal["vocabulary"] = "vocabulary"
    reads: Rows = "text"
    tied: bool = True
    """Score by the word table itself, or by a weight of its own."""


class ClassHead(InnerConfig):
    """Scores of classes."""

    kind: Literal["classes"] = "classes"
    reads: Rows
    classes: int = Field(gt=0)
    inner: Literal["none", "same", "double"] = "none"
    """Inner layers: none; of the stream's width; of twice the width."""
    join: int = Field(1, gt=0)
    """How many rows stand one behind the other as one input (two images that one text speaks of)."""


class FeatureHead(InnerConfig):
    """A region's feature again: inner layers of the stream's width, then a projection to the feature's width."""

    kind: Literal["feature"] = "feature"
    reads: Rows = "image"
    width: int = Field(gt=0)
    tied: bool = False
    """Project by the transpose of the image embedding's feature projection (Chen et al. 2020, arXiv 1909.11740)."""


COLDEST, HOTTEST = 0.001, 0.5
"""Bounds of the temperature. Source: Li et al. 2021 (arXiv 2107.07651), in their code."""


class ContrastHead(Config):
    """Two vectors of an example that can be compared, one of its text alone and one of its image alone."""

    kind: Literal["contrast"] = "contrast"
    reads: Literal["example"] = "example"
    inner_of: None = None
    width: int = Field(256, gt=0)
    """Numbers of a vector."""
    temperature: float = Field(0.07, ge=COLDEST, le=HOTTEST)
    """What similarities are divided by at the start; it is learned."""


RowHead = VocabularyHead | ClassHead | FeatureHead
"""Heads that make scores of rows of states."""

HeadConfig = Annotated[RowHead | ContrastHead, Field(discriminator="kind")]


class Contrast(nn.Module):
    """A linear for each stream, to unit length; the text's vector is divided by the learned temperature.

    Args:
        widths: of the text's and the image's states where they have not met.
    """

    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"log_scale": (-math.log(HOTTEST), -math.log(COLDEST))}
    """Parameters that training keeps between two numbers (`vlp.train.bounds`)."""

    def __init__(self, config: ContrastHead, widths: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.text = Linear(widths[0], config.width)
        self.image = Linear(widths[1], config.width)
        # A vector and not a number: ZeRO-3 gathers it like any other.
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(config.temperature)))

    def forward(self, text_KH: Tensor, image_KH: Tensor) -> Tensor:
        """The two vectors and one over the temperature side by side, [K, 2 width + 1], in fp32.

        A text's vector, which the temperature has divided, times any image's is their score.
        """
        text_KD = nn.functional.normalize(self.text(text_KH).float(), dim=1)
        image_KD = nn.functional.normalize(self.image(image_KH).float(), dim=1)
        log_scale = self.log_scale.float()
        # The copy that forward reads may lie outside until the next step; the gradient is that at the bound.
        low, high = self.bounds["log_scale"]
        scale = (log_scale.detach().clamp(low, high) + (log_scale - log_scale.detach())).exp()
        return torch.cat([text_KD * scale, image_KD, scale.expand(len(text_KD), 1)], dim=1)


class Head(nn.Module):
    """Rows of states in, scores out.

    Args:
        config: which head.
        width: width of the states it reads.
        eps: LayerNorm's epsilon.
        table: the weight [out, H] that a tied head projects by, or whose rows an untied one has; it stays its owner's
            and is read at each call.
        inner: the inner layers of another head, if the config names one.
    """

    def __init__(
        self, config: RowHead, width: int, eps: float, table: nn.Module | None, inner: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config = config
        width *= config.join if isinstance(config, ClassHead) else 1
        inner_width = _inner_width(config, width, table)
        own = nn.Identity() if inner_width == 0 or inner is not None else _Inner(config, width, inner_width, eps)
        self.transform = own
        # In tuples, so that what belongs to another is not registered twice.
        self._inner = () if inner is None else (inner,)
        self._tied = (table,) if _is_tied(config) else ()
        outputs = _outputs(config, table)
        if self._tied:
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            self.output = Linear(inner_width or width, outputs)

    @property
    def tied(self) -> bool:
        """Whether it projects by a weight that belongs to another."""
        return bool(self._tied)

    def forward(self, x_KH: Tensor, last: Callable[[Tensor, Tensor, Tensor], Any] = linear) -> Any:
        """Scores [K, V], [K, C] or features [K, D]; K is divided by `join` where rows stand together.

        Args:
            last: of a tied head, what is made of the rows that come to its end, the weight and the bias.
        """
        if isinstance(self.config, ClassHead) and self.config.join > 1:
            x_KH = x_KH.reshape(-1, self.config.join * x_KH.shape[1])
        x = self._inner[0](x_KH) if self._inner else self.transform(x_KH)
        if not self._tied:
            return self.output(x)
        (owner,) = self._tied
        assert owner is not None
        weight: Tensor = owner.weight  # type: ignore[assignment]
        return last(x, weight.t() if isinstance(self.config, FeatureHead) else weight, self.bias)


class _Inner(nn.Module):
    """Linear, activation, norm; or Linear, norm, activation."""

    def __init__(self, config: InnerConfig, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.linear = Linear(width, inner)
        self.norm = nn.Identity() if config.norm == "none" else nn.LayerNorm(inner, eps=config.eps or eps)
        self.activation = ACTIVATIONS[config.activation]
        self.norm_first = config.norm == "before_activation"

    def forward(self, x: Tensor) -> Tensor:
        inner = self.linear(x)
        return self.activation(self.norm(inner)) if self.norm_first else self.norm(self.activation(inner))


def _inner_width(config: RowHead, width: int, table: nn.Module | None) -> int:
    if isinstance(config, ClassHead):
        return {"none": 0, "same": width, "double": 2 * width}[config.inner]
    if isinstance(config, VocabularyHead):
        assert isinstance(table, nn.Embedding)
        return table.embedding_dim
    return width


def _is_tied(config: RowHead) -> bool:
    return not isinstance(config, ClassHead) and config.tied


def _outputs(config: RowHead, table: nn.Module | None) -> int:
    if isinstance(config, ClassHead):
        return config.classes
    if isinstance(config, FeatureHead):
        return config.width
    assert isinstance(table, nn.Embedding)
    return table.num_embeddings
