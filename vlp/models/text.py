"""The text stream's embedding: token ids and places in, vectors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Auto, Config
from vlp.models.blocks import LayerConfig
from vlp.models.embeddings import (
    Combine,
    EmbeddingConfig,
    Position,
    PositionConfig,
    Segment,
    SegmentConfig,
    TextPart,
    TextTables,
    WholeImage,
    WholeImageConfig,
    Word,
    WordConfig,
)
from vlp.models.linear import Linear
from vlp.types import Packing, TextBatch

TextPartKind = Literal["word", "position", "segment"]


class TextWeightsConfig(Config):
    """`text.weights:` of a model config: what of a pre-trained text model starts what of this one."""

    source: str
    """A hub id, or a directory that transformers' `save_pretrained` wrote."""
    layers: tuple[int | None, ...] | None = None
    """The pre-trained layer, counted from 0, that starts each block in which text looks at text, in the blocks' order;
    null in the list leaves a block new. By default the first block takes layer 0, the next layer 1, and so on."""
    more_positions: Literal["interpolate", "repeat", "new"] | None = None
    """How the rows of a position table that is longer than the pre-trained one start: all rows interpolated, the
    pre-trained rows again, or new ones behind them. Null refuses a longer table."""
    new: tuple[TextPartKind, ...] = ()
    """Parts that start new although the pre-trained model lacks them, as `segment`."""


class TextConfig(EmbeddingConfig):
    """`text:` of a model config."""

    vocab_size: Annotated[int, Field(gt=0)] | Auto = "auto"
    """Rows of the word table; `auto` takes the tokenizer's."""
    max_length: int = Field(512, gt=2)
    """Longest text in tokens, [CLS] and [SEP] included; rows of the position table."""
    layer: LayerConfig = LayerConfig()
    """Default of the blocks on this stream."""
    width: int | None = Field(None, gt=0)
    """Width of the tables; where it is not the layer's, a linear follows (factorised embeddings, Lan et al. 2020, arXiv
    1909.11942, 3.1). Null for the layer's."""
    add_tokens: tuple[str, ...] = ()
    """Special tokens that the tokenizer gets beside its own, as `[IMG]`; their rows come last in the word table."""
    weights: TextWeightsConfig | None = None
    """The pre-trained text model that a new model starts from; null for random weights."""
    norm: bool = True
    """LayerNorm over the combination of the parts."""
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
        if any(isinstance(part, SegmentConfig) and "text" in (part.table, part.start) for part in self.parts):
            raise ValueError("segment: the text stream has a table of its own; remove table and start")
        return self

    @property
    def table_width(self) -> int:
        """Width of the tables, whether given or the layer's."""
        return self.width or self.layer.width


def _distinct(parts: tuple[TextPart, ...]) -> None:
    kinds = [part.kind for part in parts]
    if len(set(kinds)) < len(kinds):
        raise ValueError("a kind of part stands twice")


class TextEmbedding(nn.Module):
    """Sum of the config's parts over packed text tokens."""

    def __init__(self, config: TextConfig, dropout: float) -> None:
        super().__init__()
        width = config.table_width
        assert isinstance(config.vocab_size, int)
        made: dict[str, nn.Module] = {}
        for part in config.parts:
            match part:
                case WordConfig():
                    made[part.kind] = Word(part, config.vocab_size, width)
                case PositionConfig():
                    made[part.kind] = Position(part, config.max_length, width)
                case SegmentConfig():
                    made[part.kind] = Segment(part, width)
                case WholeImageConfig():
                    made[part.kind] = WholeImage(part, width, config.layer.eps)
        self.parts = nn.ModuleDict(made)
        self.combine = Combine(config.combine, width, config.layer.eps, dropout, norm=config.norm)
        self.linear = nn.Identity() if width == config.layer.width else Linear(width, config.layer.width)

    @property
    def words(self) -> nn.Embedding:
        """The word table, which the vocabulary head is tied to."""
        return self.parts["word"].table  # type: ignore[return-value]

    @property
    def tables(self) -> TextTables:
        """What the image stream may share."""
        parts: Mapping[str, nn.Module] = dict(self.parts.items())
        position = parts.get("position")
        return TextTables(
            words=self.words,
            positions=getattr(position, "table", None),
            segments=getattr(parts.get("segment"), "table", None),
            norm=self.combine.norm,
            first_position=getattr(position, "first", 0),
        )

    def forward(self, text: TextBatch, features_RH: Tensor, regions: Packing) -> Tensor:
        """Packed tokens, [N, H].

        Args:
            features_RH: the image's feature vectors, packed as `regions` says.
        """
        vectors = {
            kind: part(text, features_RH, regions) if isinstance(part, WholeImage) else part(text)
            for kind, part in self.parts.items()
        }
        return self.linear(self.combine(vectors))  # type: ignore[no-any-return]
