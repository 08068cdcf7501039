"""Small models and synthetic examples: no tokenizer, no shards, no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from vlp import resources
from vlp.config import apply_overrides, read_yaml
from vlp.data.batch import ImageForm, TargetForm, collate
from vlp.data.image import PixelImages
from vlp.models.model import ModelConfig, Sizes, fill_sizes
from vlp.types import Batch, Example, PixelInput, RegionInput, Sample

VOCABULARY, REGION_WIDTH, CLASSES = 23, 10, 7
SIZES = Sizes(VOCABULARY, REGION_WIDTH, CLASSES)
REGIONS = ImageForm("regions", REGION_WIDTH)
CLS, SEP, MASK = 0, 1, 2

SMALL = (
    "text.layer.width=16",
    "text.layer.heads=2",
    "text.layer.ffn=24",
    "text.max_length=16",
    "init_std=0.3",
    "dropout=0",
    "attention_dropout=0",
)
"""Overrides that make a shipped tiny model smaller still, without dropout and with weights that move things."""


class Words:
    """Stands in for a tokenizer: a text is numbers with blanks between them."""

    vocab_size = VOCABULARY
    max_length = 16
    mask_id = MASK
    random_ids = np.arange(3, VOCABULARY)

    def encode(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
        ids_T = np.array([CLS, *map(int, text.split()), SEP], np.int64)
        special_T = ids_T < 2
        return ids_T, special_T, np.where(special_T, -1, np.arange(len(ids_T)))

    def encode_two(
        self, first: str, second: str
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        ids_T, special_T, _ = self.encode(f"{first} {SEP} {second}")
        segment_T = np.repeat([0, 1], [len(first.split()) + 2, len(second.split()) + 1])
        return ids_T, special_T, np.where(special_T, -1, np.arange(len(ids_T))), segment_T


def shipped(name: str, *overrides: str, sizes: Sizes = SIZES) -> ModelConfig:
    """A shipped model config with overrides, its sizes filled in."""
    values = apply_overrides(read_yaml(resources.shipped("model", name)), overrides)
    return fill_sizes(ModelConfig.parse(values, name), sizes)


def of_blocks(*blocks: Mapping[str, Any], **settings: Any) -> ModelConfig:
    """A small region model with these blocks; settings of the model, or `text_layer`, `image_layer`."""
    text_layer = {"width": 16, "heads": 2, "ffn": 24, "eps": 1e-5, **settings.pop("text_layer", {})}
    image_layer = settings.pop("image_layer", None)
    values = {
        "text": {"vocab_size": VOCABULARY, "max_length": 16, "layer": text_layer},
        "image": {
            "source": {"kind": "regions", "width": REGION_WIDTH, "classes": CLASSES},
            "parts": [{"kind": "feature", "hidden": "learned"}, {"kind": "box"}],
            "layer": None if image_layer is None else {**text_layer, **image_layer},
        },
        "encoder": [dict(block) for block in blocks],
        "dropout": 0,
        "attention_dropout": 0,
        "init_std": 0.3,
        **settings,
    }
    return ModelConfig.parse(values, "test")


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every parameter random, so that a norm's gain or a bias that is left out shows."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=draw)
            parameter.copy_(1 + noise if name.endswith("norm.weight") else noise)
    return module


def regions(number: int, rng: np.random.Generator) -> RegionInput:
    corners_R22 = np.sort(rng.random((number, 2, 2)), axis=1).astype(np.float32)
    probs_RC = rng.random((number, CLASSES)).astype(np.float32)
    return RegionInput(
        features_RD=rng.standard_normal((number, REGION_WIDTH)).astype(np.float32),
        boxes_R4=corners_R22.reshape(number, 4),
        class_probs_RC=probs_RC / probs_RC.sum(1, keepdims=True),
        hidden_R=rng.random(number) < 0.3,
    )


def pixels(size: int, tokens: int, rng: np.random.Generator) -> PixelInput:
    return PixelInput(rng.standard_normal((3, size, size)).astype(np.float32), tokens)


def noise(images: PixelImages, rng: np.random.Generator) -> PixelInput:
    """A picture of noise, of any shape, as a model takes it."""
    across, down = rng.integers(20, 200, 2)
    return images.opened(Image.fromarray(rng.integers(0, 256, (down, across, 3), dtype=np.uint8)))


def example(tokens: int, image: int | RegionInput | PixelInput | None, seed: int = 0) -> Example:
    """An example of so many tokens (specials included) and regions, or with this image."""
    rng = np.random.default_rng([seed, tokens])
    ids_T, special_T, word_T = Words().encode(" ".join(map(str, rng.integers(3, VOCABULARY, tokens - 2))))
    shown = regions(image, rng) if isinstance(image, int) else image
    return Example(f"e{seed}", ids_T, special_T, word_T, shown)


def batch_of(
    sizes: Sequence[tuple[int, int | None]], forms: Mapping[str, TargetForm] | None = None, first_seed: int = 0
) -> Batch:
    """A batch of examples of so many (tokens, regions); None is no image at all."""
    made = [example(tokens, image, first_seed + number) for number, (tokens, image) in enumerate(sizes)]
    return collate(made, REGIONS, forms or {})


def sample(tokens: int, image: int, seed: int) -> Sample:
    """A record whose one caption has so many tokens, specials included, and whose image so many regions."""
    from vlp.types import Regions

    made = example(tokens, image, seed)
    assert isinstance(made.image, RegionInput)
    found = Regions(made.image.features_RD, made.image.boxes_R4, None, made.image.class_probs_RC)
    return Sample(f"s{seed}", regions=found, captions=(" ".join(map(str, made.token_ids_T[1:-1])),))


def double(batch: Batch) -> Batch:
    return batch.to("cpu", torch.float64)
