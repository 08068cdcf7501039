"""A model in two steps: what a text or an image alone decides, run once for each; then the blocks in which they meet.

For scoring many pairs of few texts and images: a tower, an embedding, or a backbone of pixels runs once per text or
image, not once per pair.

Shape suffixes: N text tokens, M image tokens, B examples, H width of a stream.
"""

from __future__ import annotations

from itertools import takewhile

from torch import Tensor

from vlp.models.blocks import rows_of, unrolled
from vlp.models.embeddings import WholeImageConfig
from vlp.models.imageparts import AlignedConfig, ImagePositionConfig
from vlp.models.model import ModelConfig, Network
from vlp.types import Batch, Encoded, Stream


def separable(config: ModelConfig) -> bool:
    """Whether each stream's embedding reads nothing of the other's."""
    parts = (*config.image.parts, *(config.image.grid.parts if config.image.grid else ()))
    reads_text = any(
        isinstance(part, AlignedConfig) or (isinstance(part, ImagePositionConfig) and part.at == "after_text")
        for part in parts
    )
    return not reads_text and not any(isinstance(part, WholeImageConfig) for part in config.text.parts)


def looks_around(config: ModelConfig, stream: Stream) -> bool:
    """Whether tokens of a stream look at each other before text and image meet."""
    before = takewhile(lambda block: not block.mixes, rows_of(config.encoder))
    return any("self" in block.sublayers and stream in block.streams for block in before)


def image_met(config: ModelConfig) -> float:
    """The share of the image's way through the encoder that lies where text and image have met, by its sublayers; one
    of the text that looks at it counts too."""
    blocks = list(unrolled(config.encoder))
    met = next((place for place, block in enumerate(blocks) if block.mixes), len(blocks))
    counts = [len(b.sublayers) if "image" in b.streams else int("cross" in b.sublayers) for b in blocks]
    return sum(counts[met:]) / max(1, sum(counts))


def unimodal(model: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """The states where text and image meet, [N, H] and [M, H]. Examples may lack an image; their texts may be empty."""
    image_MH, features_RH, regions, _ = model.image(batch.image, batch.text, model.text.tables)
    text_NH = model.text(batch.text, features_RH, regions)
    return model.encoder.unimodal(text_NH, image_MH, batch)


def joined(model: Network, text_NH: Tensor, image_MH: Tensor, batch: Batch) -> Encoded:
    """What the model makes of pairs whose unimodal states are known; the batch's image need not hold features."""
    text_NH, image_MH = model.encoder.joined(text_NH, image_MH, batch)
    return Encoded(text_NH, image_MH, model.pooler(text_NH, image_MH, batch))
