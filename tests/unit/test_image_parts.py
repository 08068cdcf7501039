"""The parts of an image token, the rows before and after an image's, and what the two streams share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.examples import REGION_WIDTH, VOCABULARY, example, shaken
from tests.unit.part_making import (
    FEATURE,
    PATCHES,
    POSITION,
    SEGMENT,
    WORD,
    batch_for,
    config_of,
    image_of,
    model_of,
    shown_by,
    text_of,
)
from vlp.data.batch import collate
from vlp.errors import ConfigError
from vlp.models.boxes import sine_numbers
from vlp.models.image import images_of
from vlp.models.model import ModelConfig, Network
from vlp.types import FramedBatch, RegionBatch

# ------------------------------------------------------------------------------------------------------------ text


def test_a_second_text_takes_the_next_segment() -> None:
    model = model_of(text=(WORD, {**SEGMENT, "index": 1}))
    batch = batch_for(model)
    segments = torch.zeros_like(batch.text.segments_N)
    segments[2:4] = 1
    batch = replace(batch, text=replace(batch.text, segments_N=segments))
    words, table = model.text.words.weight[batch.text.ids_N], model.text.parts["segment"].table.weight
    torch.testing.assert_close(text_of(model, batch), words + table[1 + segments])


def test_positions_may_start_behind_the_first_rows_and_have_more() -> None:
    model = model_of(text=(WORD, {**POSITION, "first": 2, "rows": 20}))
    batch = batch_for(model)
    table = model.text.parts["position"].table.weight
    assert table.shape == (22, 16)
    wanted = model.text.words.weight[batch.text.ids_N] + table[2 + batch.text.positions_N]
    torch.testing.assert_close(text_of(model, batch), wanted)


def test_a_padding_row_gets_no_gradient_and_keeps_its_start() -> None:
    parts = tuple({**part, "padding_row": True} for part in (WORD, POSITION, SEGMENT))
    model = Network(config_of(text=parts))
    assert model.text.parts["position"].table.weight[0].abs().sum() > 0
    text_of(model, batch_for(model)).sum().backward()
    for part in ("word", "position", "segment"):
        grad = model.text.parts[part].table.weight.grad
        assert (grad[0] == 0).all()
    assert (model.text.parts["position"].table.weight.grad[1] != 0).all()


def test_words_carry_the_first_region_s_vector() -> None:
    model = model_of(text=(WORD, {"kind": "whole_image", "norm": True}))
    batch = batch_for(model)
    part, projected = model.text.parts["whole_image"], shown_by(model, batch)
    whole = torch.stack([projected[0], part.missing, projected[3]])  # type: ignore[arg-type, list-item]
    own = model.text.words.weight[batch.text.ids_N] + part.norm(whole)[[0] * 4 + [1] * 3 + [2] * 5]
    torch.testing.assert_close(text_of(model, batch), own)


# ---------------------------------------------------------------------------------------------------------- regions


def test_a_hidden_feature_is_replaced_whatever_it_is() -> None:
    model = model_of({**FEATURE, "hidden": "replaced"})
    batch = batch_for(model)
    assert isinstance(batch.image, RegionBatch)
    hidden, feature = batch.image.hidden_M, model.image.parts["feature"]
    assert hidden.any()
    found = image_of(model, batch)
    torch.testing.assert_close(found[~hidden], shown_by(model, batch)[~hidden])
    torch.testing.assert_close(found[hidden], feature.linear(feature.hidden).expand(int(hidden.sum()), -1))


def test_a_box_before_the_feature_and_an_activation_behind() -> None:
    model = model_of({**FEATURE, "box_frequencies": 3, "activation": "relu", "norm": True})
    batch, feature = batch_for(model), model.image.parts["feature"]
    assert isinstance(batch.image, RegionBatch)
    numbers = torch.cat([sine_numbers(batch.image.boxes_M4, 3), batch.image.features_MD], dim=1)
    assert numbers.shape[1] == 8 * 3 + REGION_WIDTH
    torch.testing.assert_close(image_of(model, batch), feature.norm(torch.relu(feature.linear(numbers))))


def test_sine_numbers_of_a_box_by_hand() -> None:
    box = torch.tensor([[0.1, 0.2, 0.5, 0.8]], dtype=torch.float64)
    wanted = []
    for number in (0.3, 0.5, 0.4, 0.6):  # centre, width, height
        angles = [100 * number, 100 * number / 1000**0.5]
        wanted += [*np.sin(angles), *np.cos(angles)]
    torch.testing.assert_close(sine_numbers(box, 2)[0], torch.tensor(wanted))


def test_a_part_s_norm_may_start_silent() -> None:
    model = Network(config_of({**FEATURE, "norm": True, "init_gain": 0.0}))
    assert (image_of(model, batch_for(model)) == 0).all()


def test_a_box_as_sines() -> None:
    model = model_of(FEATURE, {"kind": "box", "frequencies": 2})
    batch = batch_for(model)
    assert isinstance(batch.image, RegionBatch)
    box = model.image.parts["box"].linear(sine_numbers(batch.image.boxes_M4, 2))  # type: ignore[operator, union-attr]
    torch.testing.assert_close(image_of(model, batch), shown_by(model, batch) + box)


def test_a_shared_vector_and_the_one_of_hidden_regions() -> None:
    model = model_of(FEATURE, {"kind": "shared", "hidden": "replaced"})
    batch, part = batch_for(model), model.image.parts["shared"]
    assert isinstance(batch.image, RegionBatch)
    carried = torch.stack([part.vector, part.hidden])[batch.image.hidden_M.long()]  # type: ignore[arg-type, list-item]
    torch.testing.assert_close(image_of(model, batch), shown_by(model, batch) + carried)


def test_a_shared_vector_may_be_the_last_word() -> None:
    model = model_of(FEATURE, {"kind": "shared", "word": "last"})
    batch = batch_for(model)
    wanted = shown_by(model, batch) + model.text.words.weight[VOCABULARY - 1]
    torch.testing.assert_close(image_of(model, batch), wanted)
    assert not list(model.image.parts["shared"].parameters())


@pytest.mark.parametrize("at", ["index", "zero", "after_text"])
def test_places_of_regions(at: str) -> None:
    text = (WORD, {**POSITION, "rows": 18, "first": 1})
    own = {"rows": 7} if at != "after_text" else {"table": "text"}
    model = model_of(FEATURE, {"kind": "position", "at": at, **own}, text=text)
    batch = batch_for(model)
    table = model.text.parts["position"].table if at == "after_text" else model.image.parts["position"].table
    rows = {"index": [0, 1, 2, 0, 1], "zero": [0] * 5, "after_text": [1 + 4] * 3 + [1 + 5] * 2}[at]
    torch.testing.assert_close(image_of(model, batch), shown_by(model, batch) + table.weight[rows])  # type: ignore[index, union-attr]


def test_aligned_words_add_the_mean_of_their_places() -> None:
    model = model_of(FEATURE, {"kind": "aligned"}, text=(WORD, POSITION))
    batch = batch_for(model)
    plain = image_of(model, batch)
    torch.testing.assert_close(plain, shown_by(model, batch))
    assert isinstance(batch.image, RegionBatch)
    words = torch.tensor([[2, 1], [3, -1], [-1, -1], [-1, 0], [-1, -1]])
    batch = replace(batch, image=replace(batch.image, aligned_MA=words))
    table = model.text.parts["position"].table.weight
    added = torch.stack([(table[2] + table[1]) / 2, table[3], 0 * table[0], table[0], 0 * table[0]])
    torch.testing.assert_close(image_of(model, batch), plain + added)


def test_lists_of_aligned_words_of_several_lengths_are_collated() -> None:
    model = model_of(FEATURE)
    made = [example(4, 2, 0), example(3, 1, 1), example(3, None, 2)]
    assert made[0].regions is not None
    made[0].regions.aligned_RA = np.array([[1, 2], [0, -1]])
    batch = collate(made, images_of(model.config.image).form, {})
    assert isinstance(batch.image, RegionBatch)
    assert batch.image.aligned_MA is not None
    assert batch.image.aligned_MA.tolist() == [[1, 2], [0, -1], [-1, -1]]


# ------------------------------------------------------------------------------------------------ sharing, extra rows


def test_one_norm_may_serve_both_streams() -> None:
    values = config_of().plain()
    values["text"]["norm"], values["image"]["norm"] = True, "text"
    model = shaken(Network(ModelConfig.parse(values, "test")))
    assert isinstance(model, Network)
    batch = batch_for(model)
    torch.testing.assert_close(image_of(model, batch), model.text.combine.norm(shown_by(model, batch)))
    assert not [name for name in model.state_dict() if name.startswith("image.combine")]


def test_tables_that_start_as_the_text_s() -> None:
    parts = ({"kind": "position", "at": "zero", "rows": 9, "start": "text"}, {**SEGMENT, "start": "text"})
    model = Network(config_of(FEATURE, *parts, text=(WORD, POSITION, SEGMENT)))
    text, image = model.text.parts, model.image.parts
    assert torch.equal(image["position"].table.weight, text["position"].table.weight[:9])
    assert torch.equal(image["segment"].table.weight, text["segment"].table.weight)
    assert image["segment"].table.weight is not text["segment"].table.weight


def test_rows_before_and_after_an_image() -> None:
    parts = (FEATURE, {"kind": "segment", "table": "text", "index": 2}, {"kind": "position", "at": "index", "rows": 9})
    model = model_of(*parts, text=(WORD, SEGMENT), cls=True, end=True)
    batch = batch_for(model)
    assert isinstance(batch.image, FramedBatch)
    assert batch.image.packing.lengths == (5, 1, 4)  # a text without an image has its end alone
    regions = batch.image.tokens
    assert isinstance(regions, RegionBatch)
    shown = model.image.parts["feature"].linear(regions.features_MD)  # type: ignore[operator, union-attr]
    first, last = (model.image.extra[side].vector for side in ("first", "last"))
    contents = [first, *shown[:3], last, last, first, *shown[3:], last]
    segment, places = model.text.parts["segment"].table.weight[2], model.image.parts["position"].table.weight
    # A region is counted among regions, a row beside them in the whole image.
    counted = [0, 0, 1, 2, 4, 0, 0, 0, 1, 3]
    torch.testing.assert_close(image_of(model, batch), torch.stack(contents) + segment + places[counted])  # type: ignore[arg-type]


def test_targets_of_regions_stand_behind_the_first_row() -> None:
    from vlp.data.batch import TargetForm
    from vlp.types import Target

    model = model_of(FEATURE, cls=True)
    made = [example(4, 3, 0), example(3, 2, 1)]
    made[1].targets["guess"] = Target(np.array([1]), {})
    form = TargetForm("image", Target(np.zeros(0, np.int64), {}))
    batch = collate(made, images_of(model.config.image).form, {"guess": form})
    assert batch.image.packing.lengths == (4, 3)
    assert batch.targets["guess"].positions_K.tolist() == [4 + 1 + 1]


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("end", [False, True])
def test_lengths_are_known_before_anything_is_read(cls: bool, end: bool) -> None:
    model = model_of(FEATURE, cls=cls, end=end, source={"kind": "regions", "width": REGION_WIDTH, "whole": True})
    images = images_of(model.config.image)
    assert images.tokens(3) == 3 + 1 + cls + end
    assert images.tokens(0) == images.form.framed(0) == end


# ------------------------------------------------------------------------------------------------------------ refused

REFUSED: dict[str, tuple[tuple[dict[str, Any], ...], dict[str, Any], str]] = {
    "places without rows": ((FEATURE, {"kind": "position", "at": "zero"}), {}, "rows belong to a table of its own"),
    "rows of the text's": (
        (FEATURE, {"kind": "position", "at": "zero", "table": "text", "rows": 3}),
        {},
        "rows belong to a table of its own",
    ),
    "no places to share": (
        (FEATURE, {"kind": "position", "at": "zero", "table": "text"}),
        {},
        "image.parts: position takes the text's position table, and the text has none",
    ),
    "no places behind the text": (
        (FEATURE, {"kind": "position", "at": "after_text", "table": "text"}),
        {"text": (WORD, POSITION), "end": True},
        "needs 2 rows behind the longest text; give text.parts a position of rows: 18 or more",
    ),
    "a longest side of squares": (
        (FEATURE,),
        {"source": {**PATCHES, "longest": 20}},
        "longest is for fit: keep; squares have one size",
    ),
    "a longest side that is the shorter one": (
        (FEATURE,),
        {"source": {**PATCHES, "fit": "keep", "longest": 8}},
        "longest 8 is less than size 12, the shorter side",
    ),
    "fewer places than words": (
        (FEATURE,),
        {"text": (WORD, {**POSITION, "rows": 9})},
        "position has 9 rows, and max_length is 16",
    ),
    "more rows than the text's": (
        (FEATURE, {"kind": "position", "at": "zero", "rows": 40, "start": "text"}),
        {"text": (WORD, POSITION)},
        "starts as the text's table, which has 16 rows only",
    ),
    "aligned with no places": ((FEATURE, {"kind": "aligned"}), {}, "aligned takes the text's position table"),
    "a word that is hidden": (
        (FEATURE, {"kind": "shared", "word": "last", "hidden": "replaced"}),
        {},
        "hidden: replaced is for a vector of its own",
    ),
    "a start of what is shared": (
        (FEATURE, {"kind": "segment", "table": "text", "start": "text"}),
        {"text": (WORD, SEGMENT)},
        "start is how a table of its own starts",
    ),
    "the text's norm, which has none": ((FEATURE,), {"norm": "text"}, "image.norm is the text's, which has none"),
    "a mean with a row before": ((FEATURE,), {"cls": True, "combine": "mean"}, "cls and end need combine: sum"),
    "a grid of regions": (
        (FEATURE, {"kind": "grid", "rows": 2, "columns": 2}),
        {},
        "a grid of positions needs source.kind: patches",
    ),
    "the whole image of another width": (
        (FEATURE,),
        {"text": (WORD, {"kind": "whole_image"}), "layer": {"width": 8, "heads": 2}},
        "whole_image needs streams of one width",
    ),
    "patches that do not divide": (
        (FEATURE,),
        {"source": {**PATCHES, "patch": 5}},
        "size 12 is not divisible by patch 5",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_embeddings_that_cannot_be_are_refused_with_a_sentence(case: str) -> None:
    parts, settings, sentence = REFUSED[case]
    with pytest.raises(ConfigError, match=sentence):
        model_of(*parts, **settings)
