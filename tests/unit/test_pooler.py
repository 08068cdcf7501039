"""One vector per example: from which token, through what, and how two streams are fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.examples import batch_of, of_blocks, shaken
from vlp.errors import ConfigError
from vlp.models.model import Network
from vlp.types import Encoded

BLOCK = {"stream": "text", "sublayers": ["ffn"]}
BATCH = batch_of([(4, 2), (3, None), (5, 1)])
FIRST, ASKED = [0, 4, 7], [2, 5, 10]
"""Packed rows of [CLS], and of the token before [SEP]."""


def pooled(image_layer: dict[str, Any] | None = None, **pooler: Any) -> tuple[Network, Encoded]:
    model = shaken(Network(of_blocks(BLOCK, pooler=pooler, image_layer=image_layer)))
    assert isinstance(model, Network)
    return model.eval(), model(BATCH)


def images(model: Network, encoded: Encoded) -> Tensor:
    """The image's vectors, zeros for the example without one."""
    first = torch.relu(model.pooler.linear["image"](encoded.image_MH[[0, 2]]))
    return torch.stack([first[0], torch.zeros_like(first[0]), first[1]])


def test_the_token_before_sep_answers() -> None:
    model, encoded = pooled(at="mask", activation="relu")
    wanted = torch.relu(model.pooler.linear["text"](encoded.text_NH[ASKED]))
    torch.testing.assert_close(encoded.pooled_BH, wanted)


def test_without_a_projection_the_state_is_taken_as_it_is() -> None:
    model, encoded = pooled(linear=False, activation="none")
    assert torch.equal(encoded.pooled_BH, encoded.text_NH[FIRST])
    assert not list(model.pooler.parameters())


@pytest.mark.parametrize("fusion", ["product", "sum", "concat"])
def test_fusion(fusion: str) -> None:
    model, encoded = pooled({"width": 24, "heads": 2}, width=8, activation="relu", fusion=fusion)
    text = torch.relu(model.pooler.linear["text"](encoded.text_NH[FIRST]))
    image = images(model, encoded)
    wanted = {"product": text * image, "sum": text + image, "concat": torch.cat([text, image], dim=1)}[fusion]
    torch.testing.assert_close(encoded.pooled_BH, wanted)
    assert model.config.width("example") == wanted.shape[1]


def test_the_vector_is_dropped_in_training_only() -> None:
    model, _ = pooled(dropout=0.5)
    assert torch.equal(model(BATCH).pooled_BH, model(BATCH).pooled_BH)
    model.train()
    assert not torch.equal(model(BATCH).pooled_BH, model(BATCH).pooled_BH)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a width without a projection": ({"linear": False, "width": 8}, r"pooler: width is that of the projection"),
    "two widths in a product": (
        {"linear": False, "activation": "none", "fusion": "product"},
        r"pooler\.fusion: product needs one width, but text has 16 and image 24",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_poolers_that_cannot_be_are_refused_with_a_sentence(case: str) -> None:
    pooler, sentence = REFUSED[case]
    with pytest.raises(ConfigError, match=sentence):
        pooled({"width": 24, "heads": 2}, **pooler)
