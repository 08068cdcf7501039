"""VisionLanguageModel: embeddings, encoder, pooler and heads from one config; saved as safetensors and JSON.

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

from vlp.config import Config
from vlp.errors import CheckpointError, ConfigError
from vlp.models.embeddings import Feature, SegmentConfig
from vlp.models.encoder import ACTIVATIONS, BlockConfig, Encoder, Habits, LayerConfig, check_block
from vlp.models.heads import ClassHead, FeatureHead, Head, HeadConfig, VocabularyHead
from vlp.models.image import ImageConfig, ImageEmbedding, RegionSource
from vlp.models.text import TextConfig, TextEmbedding
from vlp.types import Batch, Encoded, Stream


class PoolerConfig(Config):
    """One vector per example: the first text token's state through Linear and an activation."""

    activation: Literal["tanh", "relu"] = "tanh"


class ModelConfig(Config):
    """A model: what its streams are made of, its blocks, its pooler, its heads."""

    text: TextConfig = TextConfig()
    """The text stream's embedding and its blocks' default layer."""
    image: ImageConfig
    """The image stream's source, embedding and blocks' default layer."""
    encoder: tuple[BlockConfig, ...] = Field(min_length=1)
    """The blocks, in order."""
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
    heads: dict[str, HeadConfig] = {}
    """Heads by objective; written by the task that trains the model."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        layers: dict[Stream, LayerConfig] = {"text": self.layer("text"), "image": self.layer("image")}
        for number, block in enumerate(self.encoder):
            try:
                check_block(block, layers)
            except ValueError as error:
                raise ValueError(f"encoder.{number}: {error}") from None
        return self

    @model_validator(mode="after")
    def _segments_fit(self) -> Self:
        rows = {part.kind: part.rows for part in self.text.parts if isinstance(part, SegmentConfig)}
        for part in self.image.parts:
            if not isinstance(part, SegmentConfig) or part.table == "own":
                continue
            if part.index >= rows.get("segment", 0):
                raise ValueError(f"image.parts: the text's segment table has no row {part.index}")
            if self.layer("image").width != self.layer("text").width:
                raise ValueError("image.parts: segment takes a row of the text's table, which has another width")
        return self

    def layer(self, stream: Stream) -> LayerConfig:
        return self.text.layer if stream == "text" or self.image.layer is None else self.image.layer


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that tokenizer and shards fix; None where they fix none."""

    vocab_size: int
    region_width: int | None
    classes: int | None


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
        classes = source.classes
        if classes is not None:
            # Shards without class probabilities serve all but the objectives that guess classes, which then refuse.
            found = sizes.classes
            classes = None if found is None else _size("model.image.source.classes", classes, found, "the shards have")
        source = source.model_copy(update={"width": width, "classes": classes})
    image = config.image.model_copy(update={"source": source})
    return config.model_copy(update={"text": text, "image": image})


def _size(key: str, given: int | str | None, found: int | None, has: str) -> int:
    assert found is not None
    if given not in ("auto", found):
        raise ConfigError(f"{key} is {given}, but {has} {found}; write auto, or use matching data")
    return found


class VisionLanguageModel(nn.Module):
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
        self.encoder = Encoder(config.encoder, {"text": text, "image": image}, habits)
        self.pooler = nn.Linear(text.width, text.width)
        self.heads = nn.ModuleDict({name: self._head(head) for name, head in config.heads.items()})
        # All but the backbone, which timm has initialised or given pre-trained weights.
        for part in (self.text, self.image.parts, self.image.combine, self.encoder, self.pooler, self.heads):
            part.apply(self._init)

    def _head(self, config: HeadConfig) -> Head:
        layer = self.config.layer("image" if config.reads == "image" else "text")
        tied: nn.Module | None = None
        match config:
            case VocabularyHead():
                tied = self.text.words
            case FeatureHead(tied=True):
                tied = self.image.parts["feature"].linear  # type: ignore[assignment]
            case FeatureHead() | ClassHead():
                pass
        return Head(config, layer.width, layer.eps, tied)

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Feature) and module.hidden is not None:
            nn.init.normal_(module.hidden, std=self.config.init_std)

    def forward(self, batch: Batch) -> Encoded:
        """Encode a batch; its tensors must be on the model's device and its inputs of the model's dtype."""
        text_NH = self.text(batch.text)
        image_MH = self.image(batch.image, self.text.segments)
        text_NH, image_MH, taps = self.encoder(text_NH, image_MH, batch)
        first_B = batch.text.packing.starts_B1[:-1].long()
        pooled_BH = ACTIVATIONS[self.config.pooler.activation](self.pooler(text_NH.index_select(0, first_B)))
        return Encoded(text_NH, image_MH, pooled_BH, taps)

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
        own = model.state_dict()
        wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
        wrong += [name for name in tensors if name not in own]
        if wrong:
            raise CheckpointError(
                f"{directory}: model.safetensors does not fit config.json; missing, surplus or of another shape: "
                + ", ".join(sorted(wrong)[:5])
            )
        model.load_state_dict(tensors)
        return model.eval()


def save_pretrained(directory: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Write a model's config and weights (a training engine's copies, say), in fp32."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(state, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config.plain(), indent=1) + "\n")


def read_config(directory: Path) -> ModelConfig:
    """The config of a saved model."""
    path = directory / "config.json"
    try:
        values: Any = json.loads(path.read_text())
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


def meta_model(config: ModelConfig) -> VisionLanguageModel:
    """A model without memory behind its weights, to count and describe."""
    with torch.device("meta"):
        return VisionLanguageModel(without_downloads(config))


def without_downloads(config: ModelConfig) -> ModelConfig:
    """The config of a model whose weights come from elsewhere: a backbone's own are not looked for."""
    source = config.image.source
    if isinstance(source, RegionSource):
        return config
    image = config.image.model_copy(update={"source": source.model_copy(update={"pretrained": False})})
    return config.model_copy(update={"image": image})
