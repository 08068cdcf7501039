"""Poolers: one vector per example, from a token of the text, of the image, or of both.

Shape suffixes: N text tokens, M image tokens, B examples, H width.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Config
from vlp.models.blocks import Layers
from vlp.models.dropout import dropped
from vlp.models.linear import Linear
from vlp.models.sublayers import ACTIVATIONS
from vlp.types import Batch, Stream


class PoolerConfig(Config):
    """One vector per example: a token's state through Linear and an activation."""

    at: Literal["first", "mask"] = "first"
    """The text's token: the first ([CLS]), or the last but one, where a [MASK] stands before [SEP] for an answer."""
    linear: bool = True
    """Project the state; without it the state is taken as it is."""
    width: int | None = Field(None, gt=0)
    """Width of the projection; null for the text stream's."""
    activation: Literal["tanh", "relu", "none"] = "tanh"
    """What follows the projection."""
    fusion: Literal["text", "product", "sum", "concat"] = "text"
    """The text's vector alone, or with that of the image's first token, which has a projection of its own: their
    product, their sum, one behind the other. An example without an image has zeros for it."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a unit of the vector."""

    @model_validator(mode="after")
    def _width_of_what(self) -> Self:
        if self.width is not None and not self.linear:
            raise ValueError("width is that of the projection, and linear is false; remove one of them")
        return self

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("text",) if self.fusion == "text" else ("text", "image")

    def pooled(self, layers: Layers) -> int:
        """Width of the vector.

        Args:
            layers: those at the end of the encoder.
        Raises:
            ValueError: the two streams' vectors are of different widths and should be multiplied or added.
        """
        widths = [self.projected(layers) if self.linear else layers[stream].width for stream in self.streams]
        if self.fusion in ("product", "sum") and len(set(widths)) > 1:
            raise ValueError(f"fusion: {self.fusion} needs one width, but text has {widths[0]} and image {widths[1]}")
        return sum(widths) if self.fusion == "concat" else widths[0]

    def projected(self, layers: Layers) -> int:
        """Width behind the projection."""
        return self.width or layers["text"].width


def pooled_rows(config: PoolerConfig, batch: Batch) -> dict[Stream, Tensor]:
    """The rows that a pooler reads of each stream's states: one of each text, one of each image that there is."""
    bounds_B1 = batch.text.packing.starts_B1.long()
    rows: dict[Stream, Tensor] = {"text": bounds_B1[:-1] if config.at == "first" else bounds_B1[1:] - 2}
    if config.fusion != "text":
        seen_P = torch.tensor(_seen(batch), dtype=torch.int64, device=bounds_B1.device)
        rows["image"] = batch.image.packing.starts_B1[:-1].long().index_select(0, seen_P)
    return rows


class Pooler(nn.Module):
    """States in, one vector per example out.

    Args:
        layers: those at the end of the encoder.
    """

    def __init__(self, config: PoolerConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.ModuleDict()
        if config.linear:
            width = config.projected(layers)
            self.linear.update({s: Linear(layers[s].width, width) for s in config.streams})

    def forward(self, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> Tensor:
        """[B, H]."""
        states: dict[Stream, Tensor] = {"text": text_NH, "image": image_MH}
        rows = {stream: states[stream].index_select(0, own) for stream, own in pooled_rows(self.config, batch).items()}
        pooled_BH = self._vector("text", rows["text"])
        if self.config.fusion != "text":
            pooled_BH = self._fused(pooled_BH, self._image(rows["image"], batch))
        return dropped(pooled_BH, self.config.dropout, self.training)

    def _vector(self, stream: Stream, x_BH: Tensor) -> Tensor:
        projected = self.linear[stream](x_BH) if stream in self.linear else x_BH
        return projected if self.config.activation == "none" else ACTIVATIONS[self.config.activation](projected)

    def _image(self, first_PH: Tensor, batch: Batch) -> Tensor:
        vectors, seen = self._vector("image", first_PH), _seen(batch)
        if len(seen) == len(batch):
            return vectors
        seen_P = torch.tensor(seen, dtype=torch.int64, device=first_PH.device)
        return vectors.new_zeros(len(batch), vectors.shape[1]).index_copy(0, seen_P, vectors)

    def _fused(self, text_BH: Tensor, image_BH: Tensor) -> Tensor:
        match self.config.fusion:
            case "product":
                return text_BH * image_BH
            case "sum":
                return text_BH + image_BH
            case _:
                return torch.cat([text_BH, image_BH], dim=1)


def _seen(batch: Batch) -> list[int]:
    """The examples that have an image."""
    return [row for row, length in enumerate(batch.image.packing.lengths) if length]
