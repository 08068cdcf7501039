"""Small models with chosen parts of their embeddings, a batch for them, and what the parts make of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.examples import example, of_blocks, shaken
from vlp.data.batch import collate
from vlp.models.image import images_of
from vlp.models.model import ModelConfig, Network
from vlp.types import Batch, RegionBatch

BLOCK = {"stream": "text", "sublayers": ["ffn"]}
WORD, POSITION, SEGMENT = {"kind": "word"}, {"kind": "position"}, {"kind": "segment", "rows": 3}
FEATURE = {"kind": "feature"}
SIZES: list[tuple[int, int | None]] = [(4, 3), (3, None), (5, 2)]
PATCHES = {"kind": "patches", "size": 12, "patch": 4}


def config_of(*image_parts: dict[str, Any], text: tuple[dict[str, Any], ...] = (WORD,), **image: Any) -> ModelConfig:
    values = of_blocks(BLOCK).plain()
    values["text"] |= {"parts": text, "norm": False}
    values["image"] |= {"parts": image_parts or [FEATURE], "norm": False, **image}
    return ModelConfig.parse(values, "test")


def model_of(*image_parts: dict[str, Any], **settings: Any) -> Network:
    model = shaken(Network(config_of(*image_parts, **settings)))
    assert isinstance(model, Network)
    return model.eval()


def batch_for(model: Network, sizes: list[tuple[int, int | None]] = SIZES) -> Batch:
    made = [example(tokens, image, number) for number, (tokens, image) in enumerate(sizes)]
    return collate(made, images_of(model.config.image).form, {})


def image_of(model: Network, batch: Batch) -> Tensor:
    """What the image's embedding makes of its tokens."""
    return model.image(batch.image, batch.text, model.text.tables)[0]  # type: ignore[no-any-return]


def text_of(model: Network, batch: Batch) -> Tensor:
    """What the text's embedding makes of its tokens."""
    _, features, regions, _ = model.image(batch.image, batch.text, model.text.tables)
    return model.text(batch.text, features, regions)  # type: ignore[no-any-return]


def shown_by(model: Network, batch: Batch) -> Tensor:
    """The feature part alone, where it is a plain projection."""
    assert isinstance(batch.image, RegionBatch)
    return model.image.parts["feature"].linear(batch.image.features_MD)  # type: ignore[no-any-return, operator, union-attr]
