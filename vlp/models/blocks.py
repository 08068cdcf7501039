"""What a block of the encoder can be: the configs of layers and blocks, and which of them fit together.

A block is a line of `encoder:`. It names a stream and what happens there, in this order:

    linear      a projection to another width, which the stream has from there on
    add         a learned vector per modality, added to every token
    sublayers   self, cross, joint, ffn, norm: see `vlp.models.encoder`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from typing_extensions import Self

from vlp.config import Config
from vlp.types import Stream

SublayerName = Literal["self", "cross", "joint", "ffn", "norm"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]
Share = Annotated[float, Field(ge=0, lt=1)]


class LayerConfig(Config):
    """Sizes and habits of a stream's blocks. Defaults are BERT's (Devlin et al. 2019)."""

    width: int = Field(768, gt=0)
    """Width of the hidden states."""
    heads: int = Field(12, gt=0)
    """Attention heads; the width of the attention must be divisible by it."""
    ffn: int = Field(3072, gt=0)
    """Inner width of the feed-forward network."""
    norm: Literal["post", "pre"] = "post"
    """Where LayerNorm stands: after the residual sum, or before the sublayer."""
    eps: float = Field(1e-12, gt=0)
    """LayerNorm's epsilon."""
    activation: Activation = "gelu"
    """The feed-forward network's non-linearity; gelu is exact (erf), gelu_tanh and quick_gelu approximate it."""
    dropout: Share | None = None
    """Probability of dropping a unit of a sublayer's output; null for the model's."""
    attention_dropout: Share | None = None
    """Probability of dropping an attention weight; null for the model's."""


class ModalityConfig(Config):
    """A learned vector per modality, added to each of its tokens: a row of one small table."""

    kind: Literal["modality"] = "modality"
    rows: int = Field(2, gt=0)
    """Rows of the table."""
    text: int = Field(0, ge=0)
    """The row that text takes."""
    image: int = Field(1, ge=0)
    """The row that images take."""

    @model_validator(mode="after")
    def _rows_exist(self) -> Self:
        if max(self.text, self.image) >= self.rows:
            raise ValueError(f"row {max(self.text, self.image)} needs a table of more than {self.rows} rows")
        return self


def _by_name(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class RelativeConfig(Config):
    """A learned bias on attention scores for each distance of two tokens: in words, and in rows and columns of a grid.

    Between text and image there is one bias per direction, and so between a grid's cells and what stands before them.
    Source: Bao et al. 2022 (arXiv 2106.08254), section 2.3, for the grid.
    """

    text: int = Field(gt=0)
    """Words apart that are told apart; farther ones count as this far."""
    rows: int = Field(gt=0)
    """Rows of the image's grid."""
    columns: int = Field(gt=0)
    """Columns of the image's grid."""
    prefix: int = Field(1, ge=0)
    """Image tokens before the grid's cells."""


class BlockConfig(Config):
    """One line of `encoder:`. What is not given comes from the stream's `layer`."""

    stream: Literal["text", "image", "both"]
    """The stream that the block changes."""
    linear: int | None = Field(None, gt=0)
    """Project each of the streams to this width, with weights of its own."""
    add: Annotated[ModalityConfig | None, BeforeValidator(_by_name)] = None
    """`modality`, or its settings: a learned vector per modality."""
    sublayers: tuple[SublayerName, ...] = ()
    """What happens, in order."""
    share: tuple[SublayerName, ...] = ()
    """Sublayers with one set of weights for both modalities."""
    repeat: int = Field(1, gt=0)
    """How many such blocks follow each other."""
    one_set: bool = False
    """Whether the repeated blocks are one set of weights instead of each having its own (Lan et al. 2020, arXiv
    1909.11942)."""
    heads: int | None = Field(None, gt=0)
    ffn: int | None = Field(None, gt=0)
    norm: Literal["post", "pre"] | None = None
    eps: float | None = Field(None, gt=0)
    activation: Activation | None = None
    attention_width: int | None = Field(None, gt=0)
    """Width of queries, keys and values over all heads; null for the stream's (streams of two widths that look at each
    other have one between them)."""
    qkv_bias: bool = True
    """Whether the projections to queries, keys and values have a bias."""
    inner_norm: bool = False
    """A further LayerNorm inside attention and ffn, before their last linear (Wang et al. 2022, arXiv 2210.06423)."""
    layer_scale: float | None = Field(None, gt=0)
    """Initial value of a learned gain per unit on each sublayer's output (Touvron et al. 2021, arXiv 2103.17239); null
    for none."""
    relative: RelativeConfig | None = None
    """Bias attention by distance; null for none."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        surplus = [name for name in self.share if name not in self.sublayers]
        if surplus:
            raise ValueError(f"share names '{surplus[0]}', which is not among the sublayers")
        if self.stream != "both" and (self.share or "joint" in self.sublayers):
            raise ValueError("share and joint need stream: both")
        if len(set(self.sublayers)) < len(self.sublayers):
            raise ValueError("a sublayer stands twice in one block; write two blocks")
        if not (self.sublayers or self.linear or self.add):
            raise ValueError("a block needs sublayers, linear or add")
        if self.linear and self.repeat > 1:
            raise ValueError("linear cannot be repeated; write it as a block of its own")
        if self.relative and not {"self", "joint"} & set(self.sublayers):
            raise ValueError("relative needs self or joint")
        return self

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("text", "image") if self.stream == "both" else (self.stream,)

    @property
    def mixes(self) -> bool:
        """Whether text and image meet here."""
        return bool({"cross", "joint"} & set(self.sublayers))

    @property
    def alone(self) -> bool:
        """Whether each token goes its own way here, as wide as it came."""
        return not ({"self", "cross", "joint"} & set(self.sublayers) or self.linear or self.add)

    def layer(self, stream: LayerConfig) -> LayerConfig:
        """The stream's layer with this block's own settings on top."""
        own = {name: getattr(self, name) for name in ("heads", "ffn", "norm", "eps", "activation")}
        return LayerConfig(**{**stream.model_dump(), **{k: v for k, v in own.items() if v is not None}})


class GroupConfig(Config):
    """Blocks that follow each other, the whole row of them several times."""

    repeat: int = Field(gt=0)
    """How many times, each with weights of its own."""
    blocks: tuple[BlockConfig, ...] = Field(min_length=1)
    """The row."""


def _kind_of_line(value: Any) -> str:
    given = value if isinstance(value, dict) else vars(value) if isinstance(value, Config) else {}
    return "group" if "blocks" in given else "block"


Line = Annotated[
    Annotated[BlockConfig, Tag("block")] | Annotated[GroupConfig, Tag("group")], Discriminator(_kind_of_line)
]
"""One line of `encoder:`; the one with the key `blocks` is a group."""
Blocks = Sequence[BlockConfig | GroupConfig]
Layers = Mapping[Stream, LayerConfig]


def rows_of(blocks: Blocks) -> Iterator[BlockConfig]:
    """Blocks without groups: each line with its own `repeat`."""
    for block in blocks:
        if isinstance(block, GroupConfig):
            yield from block.blocks * block.repeat
        else:
            yield block


def unrolled(blocks: Blocks) -> Iterator[BlockConfig]:
    """Blocks one by one, groups and `repeat` written out."""
    for block in rows_of(blocks):
        yield from [block] * block.repeat


def after(block: BlockConfig, layers: Layers) -> dict[Stream, LayerConfig]:
    """The streams' layers behind a block: a `linear` changes the width."""
    width = {} if block.linear is None else {"width": block.linear}
    return {s: layer.model_copy(update=width) if s in block.streams else layer for s, layer in layers.items()}


def check_blocks(blocks: Blocks, layers: Layers) -> dict[Stream, LayerConfig]:
    """The streams' layers at the end of the encoder, whose blocks fit them.

    Raises:
        ValueError: a block does not fit; the message names it by its number and says why.
    """
    current = dict(layers)
    for number, line in enumerate(blocks):
        for inner, block in enumerate(line.blocks * line.repeat if isinstance(line, GroupConfig) else [line]):
            where = f"encoder.{number}"
            if isinstance(line, GroupConfig):
                where += f".blocks.{inner % len(line.blocks)}"
            try:
                _check(block, current)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            current = after(block, current)
    return current


def _check(block: BlockConfig, layers: Layers) -> None:
    """Whether a block fits the streams as they arrive; ValueError if not."""
    layers = after(block, layers)
    text, image = layers["text"], layers["image"]
    if block.add is not None and block.stream == "both" and text.width != image.width:
        raise ValueError(f"add needs streams of one width, but text is {text.width} and image {image.width}")
    for stream in block.streams:
        own = block.layer(layers[stream])
        width = block.attention_width or own.width
        if {"self", "cross", "joint"} & set(block.sublayers) and width % own.heads:
            of = "of attention_width" if block.attention_width else f"of the {stream} stream"
            raise ValueError(f"width {width} {of} is not divisible by heads {own.heads}")
    if block.relative and len({block.layer(layers[stream]).heads for stream in block.streams}) > 1:
        raise ValueError("relative needs one number of heads for both streams")
    for name in block.sublayers:
        _check_sublayer(name, block, layers)


def _check_sublayer(name: SublayerName, block: BlockConfig, layers: Layers) -> None:
    text, image = layers["text"], layers["image"]
    own_width = name == "joint" and block.attention_width is not None and name not in block.share
    if (name == "joint" or name in block.share) and text.width != image.width and not own_width:
        reason = "joint" if name == "joint" else f"share: {name}"
        raise ValueError(f"{reason} needs streams of one width, but text is {text.width} and image {image.width}")
    keys = {"ffn": ("ffn", "activation", "norm", "eps"), "norm": ("eps",)}.get(name, ("heads", "norm", "eps"))
    for key in (*keys, "dropout", "attention_dropout") if name in block.share else ():
        theirs = [getattr(block.layer(layer), key) for layer in (text, image)]
        if theirs[0] != theirs[1]:
            raise ValueError(
                f"share: {name} needs one {key} for both streams, but text has {theirs[0]} and image {theirs[1]}"
            )
    if name == "joint" and block.layer(text).heads != block.layer(image).heads:
        raise ValueError(f"joint needs one number of heads, but text has {text.heads} and image {image.heads}")
