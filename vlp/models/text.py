"""The text stream's embedding: token ids and places in, vectors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Auto
from vlp.models.embeddings import (
    Combine,
    EmbeddingConfig,
    Position,
    PositionConfig,
    Segment,
    SegmentConfig,
    TextPart,
    Word,
    WordConfig,
)
from vlp.models.encoder import LayerConfig
from vlp.types import TextBatch


class TextConfig(EmbeddingConfig):
    """`text:` of a model config."""

    vocab_size: Annotated[int, Field(gt=0)] | Auto = "auto"
    """Rows of the word table; `auto` takes the tokenizer's."""
    max_length: int = Field(512, gt=2)
    """Longest text in tokens, [CLS] and [SEP] included; rows of the position table."""
    layer: LayerConfig = LayerConfig()
    """Default of the blocks on this stream."""
    parts: tuple[TextPart, ...] = (
        WordConfig(kind="word"),
        PositionConfig(kind="position"),
        SegmentConfig(kind="segment"),
    )
    """The vectors that make a token."""

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        _distinct(self.parts)
        if "word" not in {part.kind for part in self.parts}:
            raise ValueError("parts need a word")
        if any(isinstance(part, SegmentConfig) and part.table == "text" for part in self.parts):
            raise ValueError("segment: the text stream has a table of its own; remove table: text")
        return self


def _distinct(parts: tuple[TextPart, ...]) -> None:
    kinds = [part.kind for part in parts]
    if len(set(kinds)) < len(kinds):
        raise ValueError("a kind of part stands twice")


class TextEmbedding(nn.Module):
    """Sum of the config's parts over packed text tokens."""

    def __init__(self, config: TextConfig, dropout: float) -> None:
        super().__init__()
        width = config.layer.width
        assert isinstance(config.vocab_size, int)
        made: dict[str, nn.Module] = {}
        for part in config.parts:
            match part:
                case WordConfig():
                    made[part.kind] = Word(config.vocab_size, width)
                case PositionConfig():
                    made[part.kind] = Position(config.max_length, width)
                case SegmentConfig():
                    made[part.kind] = Segment(part, width)
        self.parts = nn.ModuleDict(made)
        self.combine = Combine(config, width, config.layer.eps, dropout)

    @property
    def words(self) -> nn.Embedding:
        """The word table, which the vocabulary head is tied to."""
        return self.parts["word"].table  # type: ignore[return-value]

    @property
    def segments(self) -> nn.Module | None:
        """The segment table, which the image stream may share."""
        parts: Mapping[str, nn.Module] = dict(self.parts.items())
        return parts["segment"].table if "segment" in parts else None  # type: ignore[return-value]

    def forward(self, text: TextBatch) -> Tensor:
        """Packed tokens, [N, H]."""
        vectors = {
            kind: part(len(text.ids_N), text.ids_N.device) if kind == "segment" else part(text)
            for kind, part in self.parts.items()
        }
        return self.combine(vectors)  # type: ignore[no-any-return]
