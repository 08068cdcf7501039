"""Network: embeddings, encoder, pooler and heads from one config; saved as safetensors and JSON.

Shape suffixes: N text tokens, M image tokens, B examples, H width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Config, read_json
from vlp.data.arrays import write_whole
from vlp.errors import CheckpointError, ConfigError
from vlp.models.backbone import Backbone
from vlp.models.blocks import LayerConfig, Line, after, check_blocks, rows_of
from vlp.models.embeddings import Vectors
from vlp.models.encoder import Encoder
from vlp.models.heads import ClassHead, Contrast, ContrastHead, FeatureHead, Head, HeadConfig, VocabularyHead
from vlp.models.image import ImageConfig, ImageEmbedding, RegionSource
from vlp.models.pooler import Pooler, PoolerConfig
from vlp.models.sharing import check_sharing
from vlp.models.sublayers import Habits
from vlp.models.tensorfile import first_of, misfits
from vlp.models.text import TextConfig, TextEmbedding
from vlp.types import Batch, Encoded, Rows, Stream


class ModelConfig(Config):
    """A model: what its streams are made of, its blocks, its pooler, its heads."""

    text: TextConfig = TextConfig()
    """The text stream's embedding and its blocks' default layer."""
    image: ImageConfig
    """The image stream's source, embedding and blocks' default layer."""
    encoder: tuple[Line, ...] = Field(min_length=1)
    """The blocks, in order; a group of them may be repeated as a whole."""
    pooler: PoolerConfig = PoolerConfig()
    """How an example's one vector is made."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping a unit of an embedding or a sublayer's output."""
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping an attention weight."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights (normal around 0); biases start at 0, norms at 1."""
    attention: Literal["sdpa", "reference"] = "sdpa"
    """Torch's fused attention, or the plain formula (slow, for tests)."""
    checkpointing: bool = False
    """Recompute the activations of the encoder's blocks in backward, but for a last one that works out only what is
    read: less memory, about a third more time. A backbone of pixels has a key of its own,
    `image.source.checkpointing`."""
    heads: dict[str, HeadConfig] = {}
    """Heads by objective; written by the task that trains the model."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        final = check_blocks(self.encoder, {"text": self.layer("text"), "image": self.layer("image")})
        try:
            self.pooler.pooled(final)
        except ValueError as error:
            raise ValueError(f"pooler.{error}") from None
        return self

    @model_validator(mode="after")
    def _inner_layers_exist(self) -> Self:
        for name, head in self.heads.items():
            if head.inner_of is None:
                continue
            owner = self.heads.get(head.inner_of)
            if owner is None or owner.inner_of is not None or owner.reads != head.reads:
                raise ValueError(
                    f"heads.{name}.inner_of: '{head.inner_of}' is no head with inner layers of its own on {head.reads}"
                )
        return self

    @model_validator(mode="after")
    def _streams_fit(self) -> Self:
        check_sharing(self.text, self.image, self.layer("image").width)
        return self

    def layer(self, stream: Stream) -> LayerConfig:
        """A stream's layer as its embedding leaves it."""
        return self.text.layer if stream == "text" or self.image.layer is None else self.image.layer

    @property
    def final(self) -> dict[Stream, LayerConfig]:
        """The streams' layers at the end of the encoder; a `linear` may have changed a width."""
        return check_blocks(self.encoder, {"text": self.layer("text"), "image": self.layer("image")})

    @property
    def unimodal(self) -> dict[Stream, LayerConfig]:
        """The streams' layers where text and image meet."""
        layers: dict[Stream, LayerConfig] = {"text": self.layer("text"), "image": self.layer("image")}
        for block in rows_of(self.encoder):
            if block.mixes:
                break
            layers = after(block, layers)
        return layers

    def width(self, rows: Rows) -> int:
        """Width of the encoded states of a kind of rows."""
        return self.pooler.pooled(self.final) if rows == "example" else self.final[rows].width


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that tokenizer and shards fix; None where they fix none."""

    vocab_size: int
    region_width: int | None
    classes: int | None
    """Columns of class probabilities."""
    class_ids: int | None = None
    """Numbers of classes are below it."""
    attribute_ids: int | None = None


def fill_sizes(config: ModelConfig, sizes: Sizes) -> ModelConfig:
    """The config with every `auto` size filled in.

    Raises:
        ConfigError: a size that was given differs from the data's; both numbers are named.
    """
    words = _size("model.text.vocab_size", config.text.vocab_size, sizes.vocab_size, "the tokenizer has")
    text = config.text.model_copy(update={"vocab_size": words})
    source = config.image.source
    if isinstance(source, RegionSource):
        if sizes.region_width is None:
            raise ConfigError(
                "model.image.source.kind: 'regions' needs region features, and the shards of data.train hold none; "
                "import them with --regions, or take a model that reads pixels"
            )
        width = _size("model.image.source.width", source.width, sizes.region_width, "the shards have")
        # Shards without classes or attributes serve all but the objectives that guess them, which then refuse.
        key = "model.image.source.classes"
        if sizes.classes is not None and source.classes is not None:
            classes: int | None = _size(key, source.classes, sizes.classes, "the shards have")
        else:
            classes = _numbered(key, source.classes, sizes.class_ids)
        attributes = _numbered("model.image.source.attributes", source.attributes, sizes.attribute_ids)
        source = source.model_copy(update={"width": width, "classes": classes, "attributes": attributes})
    image = config.image.model_copy(update={"source": source}).filled()
    return config.model_copy(update={"text": text, "image": image})


def _numbered(key: str, given: int | str | None, bound: int | None) -> int | None:
    """How many classes there are where the shards have their numbers: at least as many as the largest tells."""
    if given is None or bound is None or given == "auto":
        return bound if given == "auto" else None
    assert isinstance(given, int)
    if given < bound:
        raise ConfigError(f"{key} is {given}, but the shards have numbers up to {bound - 1}; write auto")
    return given


def _size(key: str, given: int | str | None, found: int | None, has: str) -> int:
    assert found is not None
    if given not in ("auto", found):
        raise ConfigError(f"{key} is {given}, but {has} {found}; write auto, or use matching data")
    return found


class Network(nn.Module):
    """Packed text and image tokens in, encoded states out.

    Args:
        config: with all sizes filled in (see `fill_sizes`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        text, image = config.layer("text"), config.layer("image")
        self.text = TextEmbedding(config.text, config.dropout)
        self.image = ImageEmbedding(config.image, image, config.dropout)
        habits = Habits(config.dropout, config.attention_dropout, config.attention)
        layers: dict[Stream, LayerConfig] = {"text": text, "image": image}
        self.encoder = Encoder(config.encoder, layers, habits, checkpointing=config.checkpointing)
        self.pooler = Pooler(config.pooler, config.final)
        self.heads = self._heads(config.heads)
        # All but the backbone, which timm has initialised or given pre-trained weights.
        for part in (self.text, *self.image.own_modules(), self.encoder, self.pooler, self.heads):
            part.apply(self._init)
        self.image.copy_tables(self.text.tables)

    def _heads(self, configs: dict[str, HeadConfig]) -> nn.ModuleDict:
        made: dict[str, nn.Module] = {}
        for name, config in sorted(configs.items(), key=lambda item: item[1].inner_of is not None):
            inner = None if config.inner_of is None else made[config.inner_of].transform
            made[name] = self._head(config, inner)  # type: ignore[arg-type]
        return nn.ModuleDict({name: made[name] for name in configs})

    def _head(self, config: HeadConfig, inner: nn.Module | None) -> nn.Module:
        table: nn.Module | None = None
        match config:
            case ContrastHead():
                widths = self.config.unimodal
                return Contrast(config, (widths["text"].width, widths["image"].width))
            case VocabularyHead():
                table = self.text.words
            case FeatureHead(tied=True):
                table = self.image.parts["feature"].linear  # type: ignore[assignment]
            case FeatureHead() | ClassHead():
                pass
        eps = self.config.layer("image" if config.reads == "image" else "text").eps
        return Head(config, self.config.width(config.reads), eps, table, inner)

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Vectors):
            module.start(self.config.init_std)

    def forward(self, batch: Batch) -> Encoded:
        """Encode a batch; its tensors must be on the model's device and its inputs of the model's dtype."""
        image_MH, features_RH, regions, source_MD = self.image(batch.image, batch.text, self.text.tables)
        text_NH = self.text(batch.text, features_RH, regions)
        text_NH, image_MH, taps = self.encoder(text_NH, image_MH, batch)
        made = source_MD.detach() if isinstance(self.image.backbone, Backbone) else None
        return Encoded(text_NH, image_MH, self.pooler(text_NH, image_MH, batch), taps, made)

    def save_pretrained(self, directory: Path) -> None:
        """Write `config.json` and `model.safetensors`, in fp32."""
        save_pretrained(directory, self.config, self.state_dict())

    @classmethod
    def from_pretrained(cls, directory: Path | str) -> Self:
        """The model that `save_pretrained` wrote, in eval mode.

        Raises:
            CheckpointError: a file is missing, or weights and config do not fit; the first names are given.
        """
        directory = Path(directory)
        model = cls(without_downloads(read_config(directory)))
        tensors = read_weights(directory)
        wrong = misfits(model.state_dict(), tensors)
        if wrong:
            raise CheckpointError(f"{directory}: model.safetensors does not fit config.json: {first_of(wrong)}")
        model.load_state_dict(tensors)
        return model.eval()


def save_pretrained(directory: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Write a model's config and weights (a training engine's copies, say), in fp32; no file is ever half there.

    Raises:
        CheckpointError: the weights cannot be written (disk full, ...).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; give a directory to save the model in")
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    partial = directory / ".model.safetensors.partial"
    try:
        save_file(state, partial)
        write_whole(directory / "config.json", (json.dumps(config.plain(), indent=1) + "\n").encode())
        partial.replace(directory / "model.safetensors")
    except SafetensorError as error:
        raise CheckpointError(f"{directory}: the weights cannot be written: {error}; free some space") from None
    finally:
        partial.unlink(missing_ok=True)


def read_config(directory: Path) -> ModelConfig:
    """The config of a saved model."""
    path = directory / "config.json"
    try:
        values: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not the config of a model: {error}") from None
    return ModelConfig.parse(values, str(path))


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The weights of a saved model, by name, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / "model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def meta_model(config: ModelConfig) -> Network:
    """A model without memory behind its weights, to count and describe."""
    with torch.device("meta"):
        return Network(without_downloads(config))


def without_downloads(config: ModelConfig) -> ModelConfig:
    """The config of a model whose weights come from elsewhere: those of text and image backbones are not looked for."""
    text = config.text.model_copy(update={"weights": None})
    return config.model_copy(update={"text": text, "image": config.image.without_downloads()})
