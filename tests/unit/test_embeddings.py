"""What a token is made of: the parts of an embedding, alone and together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.examples import REGION_WIDTH, VOCABULARY, batch_of, of_blocks, shaken
from vlp.errors import ConfigError
from vlp.models.boxes import box_numbers
from vlp.models.model import ModelConfig, Network
from vlp.types import RegionBatch

BLOCK = {"stream": "text", "sublayers": ["ffn"]}
WORD, FEATURE = {"kind": "word"}, {"kind": "feature"}
BATCH = batch_of([(4, 3), (3, 0), (5, 2)])


def model_of(
    text_parts: list[dict[str, Any]] | None = None,
    image_parts: list[dict[str, Any]] | None = None,
    combine: str = "sum",
    norm: bool = False,
) -> Network:
    values = of_blocks(BLOCK).plain()
    values["text"] |= {"parts": text_parts or [WORD], "norm": norm, "combine": combine}
    values["image"] |= {"parts": image_parts or [FEATURE], "norm": norm, "combine": combine}
    model = shaken(Network(ModelConfig.parse(values, "test")))
    assert isinstance(model, Network)
    return model


def text_of(model: Network) -> torch.Tensor:
    _, features, regions, _ = model.image(BATCH.image, BATCH.text, model.text.tables)
    return model.text(BATCH.text, features, regions)  # type: ignore[no-any-return]


def image_of(model: Network) -> torch.Tensor:
    return model.image(BATCH.image, BATCH.text, model.text.tables)[0]  # type: ignore[no-any-return]


def test_text_is_word_plus_position_plus_segment() -> None:
    model = model_of([WORD, {"kind": "position"}, {"kind": "segment", "rows": 3, "index": 2}])
    parts = model.text.parts
    assert parts["word"].table.weight.shape == (VOCABULARY, 16)
    assert parts["position"].table.weight.shape == (16, 16)
    places = torch.tensor([0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4])
    wanted = parts["word"].table.weight[BATCH.text.ids_N] + parts["position"].table.weight[places]
    torch.testing.assert_close(text_of(model), wanted + parts["segment"].table.weight[2])


@pytest.mark.parametrize("numbers", [4, 5, 7])
def test_box_numbers(numbers: int) -> None:
    boxes = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0, 0, 1, 1]])
    wanted = {
        4: [[0.25, 0.5, 0.5, 1.0], [0, 0, 1, 1]],
        5: [[0.25, 0.5, 0.5, 1.0, 0.125], [0, 0, 1, 1, 1]],
        7: [[0.25, 0.5, 0.5, 1.0, 0.25, 0.5, 0.125], [0, 0, 1, 1, 1, 1, 1]],
    }
    assert box_numbers(boxes, numbers).tolist() == wanted[numbers]


def test_image_is_feature_plus_box_plus_the_text_s_segment() -> None:
    image_parts = [
        {"kind": "feature", "norm": True},
        {"kind": "box", "numbers": 5},
        {"kind": "segment", "table": "text", "index": 1},
    ]
    model = model_of([WORD, {"kind": "segment"}], image_parts)
    assert isinstance(BATCH.image, RegionBatch)
    feature, box = model.image.parts["feature"], model.image.parts["box"]
    wanted = torch.nn.functional.layer_norm(
        feature.linear(BATCH.image.features_MD), (16,), feature.norm.weight, feature.norm.bias, 1e-5
    )
    wanted = wanted + box.linear(box_numbers(BATCH.image.boxes_M4, 5))
    segments = model.text.tables.segments
    assert isinstance(segments, torch.nn.Embedding)
    torch.testing.assert_close(image_of(model), wanted + segments.weight[1])
    assert model.image.parts["segment"].table is None


def test_an_image_s_own_segment_table_is_not_the_text_s() -> None:
    own = model_of([WORD, {"kind": "segment"}], [FEATURE, {"kind": "segment", "index": 1}])
    without = image_of(own) - own.image.parts["segment"].table.weight[1]
    torch.testing.assert_close(without, own.image.parts["feature"].linear(BATCH.image.features_MD))  # type: ignore[union-attr]


def test_mean_divides_by_the_number_of_parts_and_norm_comes_last() -> None:
    parts = [WORD, {"kind": "position"}]
    total, mean = text_of(model_of(parts)), text_of(model_of(parts, combine="mean"))
    torch.testing.assert_close(mean, total / 2)
    model = model_of(parts, norm=True)
    norm = model.text.combine.norm
    torch.testing.assert_close(
        text_of(model), torch.nn.functional.layer_norm(total, (16,), norm.weight, norm.bias, 1e-5)
    )


def test_a_learned_vector_is_added_where_a_region_is_hidden() -> None:
    model = model_of(image_parts=[{"kind": "feature", "hidden": "learned"}])
    assert isinstance(BATCH.image, RegionBatch)
    feature = model.image.parts["feature"]
    assert feature.hidden.shape == (2, REGION_WIDTH)
    hidden = BATCH.image.hidden_M
    assert hidden.any()
    assert not hidden.all()
    shown = feature.linear(BATCH.image.features_MD)
    torch.testing.assert_close(image_of(model)[~hidden], shown[~hidden])
    torch.testing.assert_close(
        image_of(model)[hidden], feature.linear(BATCH.image.features_MD + feature.hidden[1])[hidden]
    )


REFUSED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], str]] = {
    "no word": ([{"kind": "position"}], [FEATURE], "parts need a word"),
    "no feature": ([WORD], [{"kind": "box"}], "parts need a feature"),
    "text part twice": ([WORD, WORD], [FEATURE], "text: a kind of part stands twice"),
    "image part twice": ([WORD], [FEATURE, FEATURE], "image: a kind of part stands twice"),
    "row beyond the table": (
        [WORD, {"kind": "segment", "index": 2}],
        [FEATURE],
        "index 2 needs a table of more than 2",
    ),
    "no text table": ([WORD], [FEATURE, {"kind": "segment", "table": "text"}], "segment table has no row 0"),
    "row beyond the text's": (
        [WORD, {"kind": "segment"}],
        [FEATURE, {"kind": "segment", "table": "text", "index": 2}],
        "segment table has no row 2",
    ),
    "text from text": ([WORD, {"kind": "segment", "table": "text"}], [FEATURE], "has a table of its own"),
    "unknown": ([WORD, {"kind": "colour"}], [FEATURE], "colour"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parts_that_cannot_be_are_refused_with_a_sentence(case: str) -> None:
    text_parts, image_parts, sentence = REFUSED[case]
    with pytest.raises(ConfigError, match=sentence):
        model_of(text_parts, image_parts)
