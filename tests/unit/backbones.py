"""Small timm backbones, and models and batches over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.examples import REGION_WIDTH, VOCABULARY, example, pixels, regions
from vlp.data.batch import collate
from vlp.models.backbone import PixelSource, grid_of
from vlp.models.image import images_of
from vlp.models.model import ModelConfig
from vlp.types import Batch, BothInput, PixelInput

TINY_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SOURCES: dict[str, dict[str, Any]] = {
    "convolutions": {"backbone": "resnet10t", "size": 64},
    "convolutions, one level up": {"backbone": "resnet10t", "size": 64, "level": -2},
    "plain convolutions": {
        "backbone": "vgg_small",
        "size": 32,
        "arguments": {"channels": [4, 6, 8], "mlp_ratio": 0.01},
    },
    "activated norms": {"backbone": "mobilenetv3_small_050", "size": 64},
    "patches": {"backbone": "vit_tiny_patch16_224", "size": 48, "arguments": TINY_VIT},
    "patches, one level up": {
        "backbone": "vit_tiny_patch16_224",
        "size": 48,
        "level": -2,
        "arguments": {**TINY_VIT, "depth": 3},
    },
    "patches and their class token": {
        "backbone": "vit_tiny_patch16_224",
        "size": 48,
        "take": "tokens",
        "arguments": TINY_VIT,
    },
    "modern convolutions": {
        "backbone": "convnext_atto",
        "size": 96,
        "arguments": {"dims": [8, 8, 8, 16], "depths": [1, 1, 1, 1]},
    },
    "modern convolutions as tokens": {
        "backbone": "convnext_atto",
        "size": 96,
        "take": "tokens",
        "arguments": {"dims": [8, 8, 8, 16], "depths": [1, 1, 1, 1]},
    },
    "windows": {
        "backbone": "swin_tiny_patch4_window7_224",
        "size": 56,
        "arguments": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    },
    "windows as tokens": {
        "backbone": "swin_tiny_patch4_window7_224",
        "size": 56,
        "take": "tokens",
        "arguments": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    },
}
GRIDS = {
    "convolutions": (2, 2, 0),
    "convolutions, one level up": (4, 4, 0),
    "plain convolutions": (4, 4, 0),
    "activated norms": (2, 2, 0),
    "patches": (3, 3, 0),
    "patches, one level up": (3, 3, 0),
    "patches and their class token": (3, 3, 1),
    "modern convolutions": (3, 3, 0),
    "modern convolutions as tokens": (3, 3, 0),
    "windows": (7, 7, 0),
    "windows as tokens": (7, 7, 0),
}
"""Rows, columns and tokens of the whole image."""


def source_of(name: str, **more: Any) -> PixelSource:
    return PixelSource.parse({"kind": "pixels", **SOURCES[name], **more})


def config_of(source: PixelSource, beside_regions: bool = False) -> ModelConfig:
    """A single-stream model over a backbone, alone or beside regions."""
    tokens = {"source": source.plain(), "parts": [{"kind": "feature"}, {"kind": "box", "numbers": 4}]}
    detected = {"kind": "regions", "width": REGION_WIDTH, "classes": 7}
    image = tokens
    if beside_regions:
        image = {"source": detected, "parts": [{"kind": "feature", "norm": True}, {"kind": "box"}], "grid": tokens}
    values = {
        "text": {"vocab_size": VOCABULARY, "max_length": 16, "layer": {"width": 16, "heads": 2, "ffn": 24}},
        "image": image,
        "encoder": [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}],
        "dropout": 0,
        "attention_dropout": 0,
    }
    return ModelConfig.parse(values, "test")


def batch_of(source: PixelSource, images: list[bool], kept: int | None = None) -> Batch:
    """Examples with and without an image; `kept` is how many of its tokens are seen."""
    rng = np.random.default_rng(0)
    shown = [picture(source, rng, kept) if image else None for image in images]
    made = [example(4, image, n) for n, image in enumerate(shown)]
    return collate(made, images_of(config_of(source).image).form, {})


def picture(source: PixelSource, rng: np.random.Generator, kept: int | None = None) -> PixelInput:
    tokens = grid_of(source).tokens
    made = pixels(source.size, tokens, rng)
    if kept is not None:
        other = np.random.default_rng(int(1e3 * abs(made.pixels_3HW.sum())))  # so that pixels stay as they are without
        made.kept_K = np.sort(other.choice(tokens, kept, replace=False))
    return made


def both_batch(source: PixelSource, counts: list[int | None], kept: int | None = None) -> Batch:
    """Examples with so many regions and a picture, or without an image."""
    rng = np.random.default_rng(0)
    shown = [None if n is None else BothInput(regions(n, rng), picture(source, rng, kept)) for n in counts]
    made = [example(4, image, n) for n, image in enumerate(shown)]
    return collate(made, images_of(config_of(source, beside_regions=True).image).form, {})
