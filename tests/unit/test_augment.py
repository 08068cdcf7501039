from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.pictures import encoded, found, marked
from vlp.data.augment import AugmentConfig, draw_view, seen
from vlp.data.image import BothImages, PixelImages, RegionImages
from vlp.errors import ConfigError
from vlp.types import Regions, Sample, View

WIDE = Sample("k", width=300, height=100)


def drawn(config: dict[str, Any], text: str = "a dog", *, question: bool = False, seed: int = 0) -> View:
    rng = np.random.default_rng(seed)
    return draw_view(AugmentConfig.parse(config), WIDE, text, question=question, rng=rng)


def many(config: dict[str, Any], **options: Any) -> list[View]:
    return [drawn(config, seed=seed, **options) for seed in range(200)]


# ---------------------------------------------------------------------------------------------------------- crops


def test_nothing_is_done_that_is_not_asked_for() -> None:
    assert drawn({}) == View()


def test_a_shifted_square_goes_along_the_longer_side() -> None:
    boxes = [view.box for view in many({"crop": {"kind": "shifted"}})]
    lefts = [box[0] for box in boxes if box is not None]
    assert len(lefts) == 200
    assert all(box == pytest.approx((box[0], 0, box[0] + 1 / 3, 1)) for box in boxes if box is not None)
    assert min(lefts) < 0.02
    assert max(lefts) > 2 / 3 - 0.02


def test_a_resized_crop_keeps_to_its_area_and_aspect() -> None:
    crop = {"kind": "resized", "area": [0.2, 0.3], "aspect": [0.8, 1.2]}
    for view in many({"crop": crop}):
        assert view.box is not None
        x1, y1, x2, y2 = view.box
        assert 0 <= x1 < x2 <= 1 + 1e-9
        assert 0 <= y1 < y2 <= 1 + 1e-9
        assert 0.2 - 1e-9 <= (x2 - x1) * (y2 - y1) <= 0.3 + 1e-9
        assert 0.8 - 1e-9 <= (x2 - x1) * 300 / ((y2 - y1) * 100) <= 1.2 + 1e-9


def test_a_part_wider_than_the_image_is_cut_to_it() -> None:
    for view in many({"crop": {"kind": "resized", "area": [1.0, 1.0], "aspect": [1.0, 1.0]}}):
        assert view.box is not None
        assert view.box[3] - view.box[1] == 1
        assert view.box[2] - view.box[0] == pytest.approx(1 / 3**0.5)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"crop": {"kind": "resized", "area": [0.9, 0.2]}}, "crop: area goes from 0.9 to 0.2; give the smaller"),
        ({"crop": {"kind": "random"}}, "crop.kind: 'random' is not right, it should be one of 'shifted', 'resized'"),
        ({"flip": {"probability": 2}}, "flip.probability: 2 is not right"),
        ({"colour": {"hue": 0.7}}, "colour.hue: 0.7 is not right"),
    ],
)
def test_wrong_settings_are_a_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AugmentConfig.parse(config, "c")
    assert str(caught.value).startswith(f"c: {sentence}")


# ---------------------------------------------------------------------------------------------------------- flips


def test_so_many_are_mirrored() -> None:
    shares = [np.mean([view.mirrored for view in many({"flip": {"probability": p}})]) for p in (0.0, 0.3, 1.0)]
    assert shares[0] == 0
    assert shares[1] == pytest.approx(0.3, abs=0.1)
    assert shares[2] == 1


@pytest.mark.parametrize(
    "text",
    ["a man on the left", "LEFT of it", "his left-hand glove", "turn right.", "the rightmost cup", "goes clockwise"],
)
def test_a_text_of_left_or_right_is_never_mirrored(text: str) -> None:
    assert not any(view.mirrored for view in many({"flip": {"probability": 1}}, text=text))


@pytest.mark.parametrize("text", ["a bright light", "leftovers on a plate", "upright", "the copyright sign"])
def test_words_that_only_hold_left_or_right_are_mirrored(text: str) -> None:
    assert all(view.mirrored for view in many({"flip": {"probability": 1}}, text=text))


def test_questions_are_never_mirrored() -> None:
    assert not any(view.mirrored for view in many({"flip": {"probability": 1}}, question=True))


def test_words_of_another_language_are_given_as_phrases() -> None:
    config = {"flip": {"probability": 1, "keep": ["bên trái", "bên phải"]}}
    assert not drawn(config, "cậu bé ở Bên  trái sân").mirrored
    assert drawn(config, "trái bóng ở bên sân").mirrored, "trái alone is a fruit, or a ball"
    assert drawn(config, "a man on the left").mirrored, "the list stands for the English one"


def test_a_word_in_the_text_changes_the_mirror_and_nothing_else() -> None:
    config = {"crop": {"kind": "resized"}, "flip": {"probability": 1}, "colour": {"brightness": 0.4}}
    assert drawn(config, "on the left") == replace(drawn(config, "on a box"), mirrored=False)


def test_colours_stay_within_their_strengths() -> None:
    views = many({"colour": {"brightness": 0.2, "contrast": 0.1, "saturation": 0.4, "hue": 0.05}})
    for name, middle, strength in (
        ("brightness", 1, 0.2),
        ("contrast", 1, 0.1),
        ("saturation", 1, 0.4),
        ("hue", 0, 0.05),
    ):
        values = np.array([getattr(view, name) for view in views]) - middle
        assert np.abs(values).max() <= strength
        assert values.min() < -0.9 * strength
        assert values.max() > 0.9 * strength


# ---------------------------------------------------------------------------------------------------------- boxes

shares = st.floats(0, 0.6)
SIZE = 96


def regions(*boxes: tuple[float, float, float, float]) -> Regions:
    confidence_R = np.linspace(0.9, 0.1, len(boxes)).astype(np.float32)
    features_RD = np.arange(len(boxes), dtype=np.float32)[:, None].repeat(2, 1)
    return Regions(features_RD, np.array(boxes, np.float32), confidence_R)


@given(
    st.tuples(shares, shares, st.floats(0.1, 0.4), st.floats(0.1, 0.4)),
    st.tuples(st.integers(150, 300), st.integers(150, 300)),
    st.booleans(),
    st.sampled_from(["squash", "crop"]),
    st.sampled_from(["shifted", "resized", ""]),
    st.integers(0, 1000),
)
def test_a_box_stays_on_its_pixels(
    place: tuple[float, float, float, float], size: tuple[int, int], mirror: bool, fit: Any, crop: str, seed: int
) -> None:
    # A white box is drawn, and a region says where; after any view the region says where the white is.
    box = (place[0], place[1], place[0] + place[2], place[1] + place[3])
    config = AugmentConfig.parse(
        {"crop": {"kind": crop} if crop else None, "flip": {"probability": float(mirror)}, "colour": {"contrast": 0.2}}
    )
    sample = Sample("k", encoded(marked(*size, box), "PNG"), regions(box), width=size[0], height=size[1])
    view = draw_view(config, sample, "a box", question=False, rng=np.random.default_rng(seed))
    images = BothImages(RegionImages(feature_width=2), PixelImages(SIZE, 1, fit=fit))
    prepared = images.prepare(replace(sample, view=view))
    assert prepared is not None
    assert len(prepared.regions) == 1
    drawn_at = prepared.regions.boxes_R4[0]
    if (drawn_at[2:] - drawn_at[:2]).min() < 4 / SIZE:
        return  # nearly nothing of it is in the view
    # A pixel of the square, one of the picture in it, and what the blur of scaling takes.
    assert np.abs(drawn_at - found(prepared.pixels.pixels_3HW)).max() < 2.5 / SIZE


def test_regions_outside_the_view_are_left_out_and_the_others_cut_off() -> None:
    view = View(box=(0.5, 0.0, 1.0, 1.0))
    sample = Sample("k", regions=regions((0, 0, 0.3, 1), (0.6, 0, 0.7, 1), (0.4, 0, 1, 0.5), (0, 0, 1, 1)), view=view)
    prepared = RegionImages(feature_width=2).prepare(sample)
    assert prepared is not None
    assert prepared.features_RD[:, 0].tolist() == [1, 2, 3], "the last one's centre is on the edge"
    assert prepared.boxes_R4 == pytest.approx(np.array([[0.2, 0, 0.4, 1], [0, 0, 1, 0.5], [0, 0, 1, 1]]))


def test_the_surest_of_those_in_view_are_kept() -> None:
    sample = Sample("k", regions=regions(*[(x, 0.1, x + 0.05, 0.2) for x in (0.1, 0.2, 0.6, 0.7, 0.8)]))
    prepared = RegionImages(2, max_regions=2).prepare(replace(sample, view=View(box=(0.5, 0, 1, 1), mirrored=True)))
    assert prepared is not None
    assert prepared.features_RD[:, 0].tolist() == [2, 3]
    assert prepared.boxes_R4[:, 0] == pytest.approx([0.7, 0.5])


def test_of_an_image_whose_centres_are_all_outside_the_largest_part_is_seen() -> None:
    boxes = regions((0, 0, 0.6, 1), (0, 0, 0.55, 0.1)).boxes_R4
    rows, moved = seen(boxes, View(box=(0.5, 0, 1, 1)))
    assert rows.tolist() == [0]
    assert moved[0] == pytest.approx([0, 0, 0.2, 1])
    assert seen(boxes[:0], View(box=(0.5, 0, 1, 1)))[0].tolist() == []


def test_features_are_those_of_the_shard() -> None:
    given_regions = regions((0.1, 0.1, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9))
    plain, mirrored = (
        RegionImages(2).prepare(Sample("k", regions=given_regions, view=view)) for view in (None, View(mirrored=True))
    )
    assert plain is not None
    assert mirrored is not None
    assert (plain.features_RD == mirrored.features_RD).all()
    assert mirrored.boxes_R4 == pytest.approx(np.array([[0.6, 0.1, 0.9, 0.4], [0.1, 0.5, 0.5, 0.9]]))
