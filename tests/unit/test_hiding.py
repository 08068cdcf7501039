"""What is hidden of a batch's features, and asked of them, where the batch is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.task_making import model_config
from vlp.data.batch import WEIGHT, ImageForm, TargetForm, collate
from vlp.models.model import ModelConfig, Network
from vlp.types import Asked, Batch, BothInput, Example, Hiding, PixelInput, RegionInput, Target, regions_of

WIDTH = 3
FORMS = {"looks": TargetForm("image", Target(np.zeros(0, np.int64), {}), asks_features=True)}
REGIONS = ImageForm("regions", WIDTH)
FRAMED = ImageForm("regions", WIDTH, first=True, last=True)
BOTH = ImageForm("both", WIDTH, size=4)


def image(number: int, regions: int, hidden: list[int], hiding: Hiding | None) -> RegionInput:
    """Region r of image n has features n, r, 1."""
    features_RD = np.stack([np.full(regions, number), np.arange(regions), np.ones(regions)], 1).astype(np.float32)
    hidden_R = np.isin(np.arange(regions), hidden)
    return RegionInput(features_RD, np.zeros((regions, 4), np.float32), hidden_R=hidden_R, hiding=hiding)


def example(shown: RegionInput | None, guessed: list[int], pixels: int = 0) -> Example:
    ids = np.arange(2)
    whole = None if shown is None else BothInput(shown, PixelInput(np.zeros((3, 4, 4), np.uint8), pixels))
    made = Example("x", ids, ids > 5, ids, whole if pixels else shown)
    if shown is not None:
        made.targets["looks"] = Target(np.array(guessed, np.int64), {})
    return made


def examples(pixels: int = 0) -> list[Example]:
    """The second has no image; the third replaces a region by a half float's and keeps another that is guessed."""
    lent = np.array([[9, 8, 7]], np.float16)
    return [
        example(image(1, 3, [0], Hiding()), [0, 2], pixels),
        example(None, []),
        example(image(3, 4, [3], Hiding(np.array([1]), lent)), [1, 2, 3], pixels),
    ]


def features_of(batch: Batch) -> Tensor:
    regions = regions_of(batch.image)
    assert regions is not None
    return regions.features_MD


@pytest.mark.parametrize(("form", "pixels"), [(REGIONS, 0), (FRAMED, 0), (BOTH, 2)], ids=["regions", "framed", "both"])
def test_features_are_hidden_and_asked_for(form: ImageForm, pixels: int) -> None:
    batch = collate(examples(pixels), form, FORMS)
    before = features_of(batch).clone()
    for dtype in (None, torch.bfloat16):
        used = batch.to("cpu", dtype)
        assert features_of(used).tolist() == [
            *([0, 0, 0], [1, 1, 1], [1, 2, 1]),
            *([3, 0, 1], [9, 8, 7], [3, 2, 1], [0, 0, 0]),
        ]
        assert features_of(used).dtype == (dtype or torch.float32)
        # What was there before is asked for, as exact as it was.
        assert used.targets["looks"].values["feature"].dtype == torch.float32
        assert used.targets["looks"].values["feature"].tolist() == [
            [1, 0, 1],
            [1, 2, 1],
            [3, 1, 1],
            [3, 2, 1],
            [3, 3, 1],
        ]
        again = used.to("cpu")
        torch.testing.assert_close(features_of(again), features_of(used), rtol=0, atol=0)
        torch.testing.assert_close(again.targets["looks"].values, used.targets["looks"].values, rtol=0, atol=0)
    torch.testing.assert_close(features_of(batch), before, rtol=0, atol=0)  # it may be used again


def test_positions_count_the_tokens_around_the_regions() -> None:
    framed, both = (collate(examples(pixels), form, FORMS) for form, pixels in ((FRAMED, 0), (BOTH, 2)))
    assert framed.targets["looks"].positions_K.tolist() == [1, 3, 8, 9, 10]  # images of 5, 1 and 6 tokens
    assert both.targets["looks"].positions_K.tolist() == [0, 2, 6, 7, 8]  # of 5, 0 and 6


def test_marks_alone_hide_nothing() -> None:
    """A model marks what `hidden_R` says; only an image that says what is hidden has features set to zero."""
    marked, hidden = image(1, 2, [0], None), image(2, 2, [0], Hiding())
    shown = collate([example(marked, []), example(hidden, [])], REGIONS, FORMS).to("cpu")
    assert features_of(shown).tolist() == [[1, 0, 1], [1, 1, 1], [0, 0, 0], [2, 1, 1]]
    bare = collate([example(marked, [1])], REGIONS, FORMS).to("cpu")
    assert features_of(bare).tolist() == [[1, 0, 1], [1, 1, 1]]
    assert bare.targets["looks"].values["feature"].tolist() == [[1, 1, 1]]


def test_the_whole_image_is_the_mean_of_what_is_seen() -> None:
    seen = [np.array(places, np.int64) for places in ([1, 3], [], [], [1])]
    none = image(9, 0, [], None)
    made = [image(n, size, [], Hiding(seen_S=seen[n])) for n, size in enumerate((4, 3, 1, 2))]
    # Between them: no image, one without regions, and one of which nothing is hidden, whose mean the loader has made.
    loaders = image(7, 3, [], None)
    batch = collate(
        [example(each, []) for each in (None, made[0], none, made[1], loaders, *made[2:], none)], REGIONS, FORMS
    )
    shown, before = features_of(batch.to("cpu")), features_of(batch)
    wholes = [0, 4, 10, 11]
    assert shown[wholes].tolist() == [[0, 2, 1], [0, 0, 0], [0, 0, 0], [3, 1, 1]]
    others = [row for row in range(len(before)) if row not in wholes]
    assert len(others) == 9
    assert shown[others].tolist() == before[others].tolist()


@pytest.mark.parametrize("form", [REGIONS, FRAMED], ids=["regions", "framed"])
def test_a_model_takes_no_batch_whose_regions_are_still_to_be_hidden(form: ImageForm) -> None:
    source = {"kind": "regions", "width": WIDTH, "classes": 2}
    frames = {"cls": form.first, "end": form.last}
    values = model_config(source).plain()
    model = Network(ModelConfig.parse({**values, "image": {**values["image"], **frames}}))
    batch = collate(examples(), form, FORMS)
    with pytest.raises(ValueError, match=r"still to be hidden; give the model what Batch\.to makes of it"):
        model(batch)
    model(batch.to("cpu"))


def test_what_nobody_has_a_form_for_is_not_asked() -> None:
    asked = Asked(np.ones(1, np.int64), np.zeros(1, np.int64), {})
    with pytest.raises(ValueError, match="sounds"):
        collate([example(image(1, 2, [], None), [])], REGIONS, FORMS, {"sounds": asked})


def test_weights_are_counted_exactly() -> None:
    thirds = np.full(10_001, 1 / 3, np.float32)
    forms = {"looks": TargetForm("text", Target(np.zeros(0, np.int64), {WEIGHT: thirds[:0]}))}
    one = example(None, [])
    one.targets["looks"] = Target(np.zeros(len(thirds), np.int64), {WEIGHT: thirds})
    assert collate([one], REGIONS, forms).targets["looks"].count == float(thirds[0]) * len(thirds)


def test_no_regions_at_all() -> None:
    batch = collate([example(None, [])], REGIONS, FORMS).to("cpu")
    assert batch.targets["looks"].values["feature"].shape == (0, WIDTH)
    meta = collate(examples(), REGIONS, FORMS).to("meta")
    assert meta.targets["looks"].values["feature"].shape == (5, WIDTH)
