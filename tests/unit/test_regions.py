"""Hiding regions: how many, what stands in their place, and what shows through their neighbours."""

from copy import copy
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.unit.shard_making import WIDTH
from tests.unit.task_making import block, example, shown_features, within_3_sigma
from tests.unit.task_making import hide as hide_some
from vlp.config import Config
from vlp.data.batch import ImageForm, collate
from vlp.data.image import with_whole
from vlp.errors import ConfigError
from vlp.objectives.objective import Hidden
from vlp.objectives.regions import RegionHidingConfig, hide_regions, overlapped, spare_regions
from vlp.seeds import Draws, draw
from vlp.types import Example, PixelInput, RegionBatch, RegionInput


def hidden_by(
    made: Example, seed: int = 0, lent: np.ndarray | None = None, **config: Any
) -> tuple[RegionInput, RegionInput, np.ndarray]:
    """The regions as they are shown and as they were, and which of them are targets."""
    hidden = hide_some(made, RegionHidingConfig(**config), draw(seed, "t"), lent)
    assert hidden.example is made
    image = made.regions
    assert image is not None
    guessed_R = np.zeros(len(image), bool)
    guessed_R[hidden.guessed_K] = True
    assert (np.flatnonzero(guessed_R) == hidden.guessed_K).all()  # each once, in ascending order
    return replace(image, features_RD=shown_features(made)), image, guessed_R


def hide(made: Example, seed: int = 0, **config: Any) -> tuple[RegionInput, RegionInput, np.ndarray]:
    return hidden_by(made, seed, None, **config)


def test_so_many_are_targets_and_so_many_of_them_zeroed_replaced_and_kept() -> None:
    regions, images = 36, 3000  # 108 000 regions; of a lent feature all numbers are 7
    lent = np.full((4, WIDTH), 7, np.float32)
    targets = zeroed = replaced = kept = 0
    for image in range(images):
        made = example(regions=regions)
        after, _, guessed_R = hidden_by(made, image, lent, zero=0.8, random=0.1, at_least_one=False)
        zero_R, random_R = ((after.features_RD == value).all(axis=1) for value in (0, 7))
        assert after.hidden_R is not None
        assert (zero_R == after.hidden_R).all()  # what is zeroed is marked, and nothing else
        assert not ((zero_R | random_R) & ~guessed_R).any()
        targets += int(guessed_R.sum())
        zeroed += int(zero_R.sum())
        replaced += int(random_R.sum())
        kept += int((guessed_R & ~zero_R & ~random_R).sum())
    assert within_3_sigma(targets, regions * images, 0.15)
    for found, share in ((zeroed, 0.8), (replaced, 0.1), (kept, 0.1)):
        assert within_3_sigma(found, targets, share)


@given(st.integers(1, 5), st.integers(0, 999))
def test_at_least_one_is_hidden(regions: int, seed: int) -> None:
    assert hide(example(regions=regions), seed, probability=0.01)[2].any()


def test_or_perhaps_none() -> None:
    guessed = [hide(example(regions=2), seed, probability=0.15, at_least_one=False)[2].any() for seed in range(1000)]
    assert within_3_sigma(sum(guessed), 1000, 1 - 0.85**2)


def test_without_a_lender_zeros_stand_for_a_random_feature() -> None:
    for lent in (None, np.zeros((0, WIDTH), np.float32)):
        after, _, _ = hidden_by(example(regions=20), 0, lent, probability=1, zero=0.2, random=0.8)
        assert not after.features_RD.any()
        assert after.hidden_R is not None
        assert after.hidden_R.all()


def test_each_lent_feature_stands_in_once_before_one_does_twice() -> None:
    lent, firsts = np.repeat(np.arange(100, 104, dtype=np.float32), WIDTH).reshape(4, WIDTH), set()
    for seed in range(40):
        after, _, _ = hidden_by(example(regions=6), seed, lent, probability=1, zero=0, random=1)
        found = after.features_RD[:, 0].tolist()
        assert sorted(found.count(value) for value in (100, 101, 102, 103)) == [1, 1, 2, 2]
        firsts.add(found[0])
    assert firsts == {100, 101, 102, 103}


def test_which_lent_feature_comes_first_has_nothing_to_do_with_what_else_is_drawn() -> None:
    lent, firsts = np.repeat(np.arange(1, 5, dtype=np.float32), WIDTH).reshape(4, WIDTH), [0] * 4
    for seed in range(4000):  # the fate of the one region, to be replaced, is below a half
        made = example(regions=1)
        after, _, _ = hidden_by(made, seed, lent, probability=1, zero=0.5, random=0.5)
        if (found := int(after.features_RD[0, 0])) and made.regions and made.regions.hiding.replaced_P is not None:  # type: ignore[union-attr]
            firsts[found - 1] += 1
    assert sum(firsts) > 1800
    assert all(within_3_sigma(first, sum(firsts), 0.25) for first in firsts)


def test_features_of_shards_in_other_precisions_stand_in_too() -> None:
    third = np.float32(1 / 3)
    config = RegionHidingConfig(probability=1, zero=0, random=1)
    for dtypes in ((np.float32, np.float16), (np.float16, np.float32)):
        given = [Hidden(example(regions=3), lent_KD=np.full((1, WIDTH), third, dtype)) for dtype in dtypes]
        hide_regions(given, config, Draws([1, 2]))
        batch = collate([each.example for each in given], ImageForm("regions", WIDTH), {}).to("cpu")
        assert isinstance(batch.image, RegionBatch)
        for dtype, shown in zip(dtypes, batch.image.features_MD.split(3), strict=True):
            assert (shown.numpy() == np.float32(dtype(third))).all()


def test_spare_regions_are_of_other_samples_and_there() -> None:
    tables = block(2, 1, 3)
    tables.regions_S[:] = [5, 0, 2]
    config = RegionHidingConfig(zero=0.8, random=0.1)
    for seed in range(200):
        for loan in spare_regions(0, tables, config, draw(seed, "t")):
            assert (loan.sample, loan.regions) == (2, 1)
            assert 0 <= loan.first < 2
    firsts = [loan.first for seed in range(2000) for loan in spare_regions(2, tables, config, draw(seed, "t"))]
    for region in range(5):  # which region it is has nothing to do with whose
        assert within_3_sigma(firsts.count(region), len(firsts), 0.2)
    assert spare_regions(0, block(4), config, draw(0, "t")) == ()
    assert spare_regions(0, tables, RegionHidingConfig(), draw(0, "t")) == ()


def test_features_alone_are_hidden() -> None:
    made = example(regions=6)
    assert isinstance(made.image, RegionInput)
    boxes = made.image.boxes_R4.copy()
    after, was, _ = hide(made, probability=1.0)
    assert not after.features_RD.any()
    assert (after.boxes_R4 == boxes).all()  # where it is may be known
    assert (was.features_RD != 0).any(axis=1).all()  # the example keeps them, for objectives to ask


def test_neighbours_are_zeroed_along_but_not_guessed() -> None:
    boxes = np.array(
        [[0, 0, 0.4, 0.4], [0, 0, 0.4, 0.3], [0, 0, 1, 1], [0.6, 0.6, 0.9, 0.9]], np.float32
    )  # overlaps with the first: 1, 0.75, 0.16, 0
    for seed in range(50):
        made = example(regions=4)
        assert isinstance(made.image, RegionInput)
        made.image.boxes_R4 = boxes
        after, was, guessed = hide(made, seed, probability=0.01, overlap=0.5)
        assert after.hidden_R is not None
        (target,) = np.flatnonzero(guessed)
        zeroed = np.flatnonzero((after.features_RD == 0).all(axis=1)).tolist()
        assert zeroed == ([0, 1] if target < 2 else [target])
        assert np.flatnonzero(after.hidden_R).tolist() == zeroed  # a mask embedding marks neighbours too
        untouched = [row for row in range(4) if row not in zeroed]
        assert (after.features_RD[untouched] == was.features_RD[untouched]).all()


def test_a_target_that_keeps_its_feature_is_not_zeroed_as_a_neighbour() -> None:
    made = example(regions=500)
    assert isinstance(made.image, RegionInput)
    made.image.boxes_R4 = np.tile(np.array([0, 0, 1, 1], np.float32), (500, 1))  # all overlap all
    after, _, guessed = hide(made, probability=0.5, zero=0.5, overlap=0.4)
    zeroed = (after.features_RD == 0).all(axis=1)
    assert zeroed[~guessed].all()
    assert within_3_sigma(int(zeroed[guessed].sum()), int(guessed.sum()), 0.5)
    assert after.hidden_R is not None
    assert (after.hidden_R == zeroed).all()  # nor does a mask embedding mark it


def test_pure_in_the_generator() -> None:
    first, again, other = (hide(example(regions=40), seed)[2] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_pixels_and_missing_images_stay() -> None:
    for image in (None, PixelInput(np.zeros((3, 4, 4), np.float32), 4), example(regions=0).image):
        made = example()
        made.image = image
        result = hide_some(made, RegionHidingConfig(), draw(0, "t"))
        assert made.image is image
        assert len(result.guessed_K) == 0


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes, side by side."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 1e-6 else 0.0


@given(hnp.arrays(np.float64, (4, 2, 2), elements=st.integers(0, 8).map(lambda place: place / 8)))
def test_overlaps_against_box_by_box(corners: np.ndarray) -> None:
    boxes = np.sort(corners, axis=1).reshape(4, 4)
    overlap = np.array([[_overlap(a, b) for b in boxes] for a in boxes])
    single = boxes.astype(np.float32)
    for share in (0.13, 0.41, 0.77):  # no overlap of such boxes is one of these
        for some in ([0], [2, 3], [0, 1, 2, 3], []):
            some_R = np.isin(np.arange(4), some)
            wanted = (overlap[some] > share).any(axis=0).tolist()
            assert overlapped(single, some_R, np.array([0, 4]), share).tolist() == wanted
            # The same boxes are two other images', of which one has none of some boxes.
            both, twice = np.concatenate([single, single, single]), np.concatenate([some_R & False, some_R, some_R])
            found = overlapped(both, twice, np.array([0, 4, 4, 8, 12]), share).tolist()
            assert found == [*[False] * 4, *wanted, *wanted]


def test_what_is_chosen_of_an_example_is_its_own() -> None:
    config = RegionHidingConfig(probability=0.2, zero=0.5, random=0.2, overlap=0.3)
    lent = np.full((4, WIDTH), 7, np.float32)
    examples = [example(regions=regions) for regions in (5, 0, 1, 40, 2, 9)]
    for number in (0, 3):
        image = examples[number].regions
        assert image is not None
        examples[number].image = with_whole(image)
    examples.append(example())
    examples[-1].image = None
    given = [Hidden(each, lent_KD=lent if number % 2 else None) for number, each in enumerate(examples)]
    for at_least_one in (True, False):
        config = config.model_copy(update={"at_least_one": at_least_one})
        hide_regions(given, config, Draws([draw(number, "t").key for number in range(7)]))
        for number, each in enumerate(given):
            alone = Hidden(replace(each.example, image=copy(each.example.image)), lent_KD=each.lent_KD)
            hide_regions([alone], config, Draws([draw(number, "t").key]))
            assert each.guessed_K.tolist() == alone.guessed_K.tolist()
            if each.example.regions and alone.example.regions:
                np.testing.assert_equal(each.example.regions.hidden_R, alone.example.regions.hidden_R)
                np.testing.assert_equal(
                    *(asdict(image.hiding) for image in (each.example.regions, alone.example.regions) if image.hiding)
                )
        hidings = [each.example.regions.hiding for each in given if each.example.regions]
        assert any(hiding is not None and hiding.replaced_P is not None for hiding in hidings)
    hide_regions([], config, Draws([]))


@pytest.mark.parametrize("config", [{"zero": 0}, {"probability": 0}, {"overlap": 0}, {"random": 0.1}])
def test_hiding_nothing_is_refused(config: dict[str, float]) -> None:
    kind: type[Config] = RegionHidingConfig
    with pytest.raises(ConfigError, match=next(iter(config))):
        kind.parse(config)


def test_the_whole_image_is_not_hidden_and_its_feature_is_the_mean_of_what_is_shown() -> None:
    made = example(regions=6)
    assert isinstance(made.image, RegionInput)
    made.image = with_whole(made.image)
    assert (len(made.image), made.image.boxes_R4[0].tolist()) == (7, [0, 0, 1, 1])
    np.testing.assert_allclose(made.image.features_RD[0], made.image.features_RD[1:].mean(0), rtol=1e-6)
    image, was, guessed_R = hide(made, 5, probability=0.4, zero=0.5, overlap=0.3)
    assert image.hidden_R is not None
    assert not guessed_R[0]
    assert not image.hidden_R[0]
    # Targets that keep their feature, and zeroed neighbours, are not in the mean either.
    shown = ~guessed_R & (image.features_RD != 0).any(1)
    shown[0] = False
    assert 0 < shown.sum() < 6
    np.testing.assert_allclose(image.features_RD[0], was.features_RD[shown].mean(0), rtol=1e-5)


def test_the_whole_image_may_show_targets_that_keep_their_feature_but_none_that_is_not_its_own() -> None:
    lent = np.full((4, WIDTH), 7, np.float32)
    made = example(regions=30)
    assert isinstance(made.image, RegionInput)
    made.image = with_whole(made.image)
    image, was, guessed_R = hidden_by(made, 5, lent, probability=0.6, zero=0.3, random=0.3, whole_without="hidden")
    own = (image.features_RD == was.features_RD).all(axis=1)
    own[0] = False
    assert (own & guessed_R).any()
    assert (image.features_RD == 7).all(axis=1).any()
    np.testing.assert_allclose(image.features_RD[0], was.features_RD[own].mean(0), rtol=1e-5)


def test_the_whole_image_of_regions_that_are_all_hidden_is_zero() -> None:
    made = example(regions=3)
    assert isinstance(made.image, RegionInput)
    made.image = with_whole(made.image)
    assert not hide(made, 5, probability=1)[0].features_RD.any()
