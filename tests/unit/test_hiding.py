"""What is hidden of a batch's features, and asked of them, where the batch is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vlp.data.batch import ImageForm, TargetForm, collate
from vlp.types import Batch, BothInput, Example, Hiding, PixelInput, RegionInput, Target, regions_of

WIDTH = 3
FORMS = {"looks": TargetForm("image", Target(np.zeros(0, np.int64), {}), features=True)}
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
    seen = [np.array(flags, bool) for flags in ([0, 1, 0, 1], [0, 0, 0], [0, 1])]
    made = [image(n, len(flags), [], Hiding(seen_R=flags)) for n, flags in enumerate(seen)]
    batch = collate([example(None, []), *(example(each, []) for each in made)], REGIONS, FORMS)
    assert features_of(batch.to("cpu"))[[0, 4, 7]].tolist() == [[0, 2, 1], [0, 0, 0], [2, 1, 1]]
    assert features_of(batch.to("cpu"))[1:4].tolist() == features_of(batch)[1:4].tolist()


def test_no_regions_at_all() -> None:
    batch = collate([example(None, [])], REGIONS, FORMS).to("cpu")
    assert batch.targets["looks"].values["feature"].shape == (0, WIDTH)
    meta = collate(examples(), REGIONS, FORMS).to("meta")
    assert meta.targets["looks"].values["feature"].shape == (5, WIDTH)
