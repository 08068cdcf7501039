import numpy as np
import pytest

from tests.unit.pictures import encoded, ramps
from vlp.data.image import BothImages, PixelImages, RegionImages
from vlp.data.pixels import OwnShape
from vlp.data.samples import Fault
from vlp.seeds import Draw
from vlp.types import Regions, Sample

PLAIN = PixelImages(size=32, tokens_per_image=4)


def test_pixels_are_bytes_of_the_square_and_count_as_the_backbone_s_tokens() -> None:
    prepared = PLAIN.prepare(Sample("key", image=encoded(ramps())))
    assert prepared is not None
    assert prepared.pixels_3HW.dtype == np.uint8
    assert prepared.pixels_3HW.shape == (3, 32, 32)
    assert len(prepared) == PLAIN.tokens(0) == 4


def test_a_picture_that_is_open_gives_the_same_pixels() -> None:
    prepared = PLAIN.prepare(Sample("key", image=encoded(ramps(), "PNG")))
    assert prepared is not None
    assert (PLAIN.opened(ramps()).pixels_3HW == prepared.pixels_3HW).all()


def test_some_tokens_are_drawn_where_not_all_are_taken() -> None:
    images = PixelImages(size=8, tokens_per_image=10, sample=4)
    sample = Sample("key", image=encoded(ramps()))
    drawn = [images.prepare(sample, Draw(seed)) for seed in (0, 0, 1)]
    kept = [made.kept_K.tolist() for made in drawn if made is not None and made.kept_K is not None]
    assert [len(made or ()) for made in drawn] == [4, 4, 4]
    assert images.tokens(0) == 4
    assert kept[0] == kept[1] != kept[2]
    assert all(rows == sorted(set(rows)) and set(rows) <= set(range(10)) for rows in kept)


def test_an_image_that_keeps_its_shape_has_the_tokens_of_its_own_patches() -> None:
    images = PixelImages(size=32, tokens_per_image=6, shape=OwnShape(32, 48, 16))
    for size, grid in (((100, 100), (2, 2)), ((300, 200), (2, 3)), ((200, 300), (3, 2))):
        picture = ramps(*size)
        made = images.prepare(Sample("key", image=encoded(picture, "PNG")))
        assert made is not None
        assert (made.grid, len(made)) == (grid, grid[0] * grid[1])
        assert (images.opened(picture).pixels_3HW == made.pixels_3HW).all()
    assert images.tokens(0) == len(images.blank()) == 6
    some = PixelImages(size=32, tokens_per_image=6, sample=5, shape=OwnShape(32, 48, 16))
    lengths = [
        len(some.prepare(Sample("key", image=encoded(ramps(*size))), Draw(0)) or ())
        for size in ((100, 100), (300, 200))
    ]
    assert lengths == [4, 5]
    assert some.tokens(0) == 5


def test_a_sample_without_an_image_gives_none() -> None:
    assert PLAIN.prepare(Sample("key")) is None
    assert RegionImages(feature_width=3).prepare(Sample("key")) is None
    assert BothImages(RegionImages(feature_width=3), PLAIN).prepare(Sample("key")) is None


def regions(count: int, confidence: list[float] | None) -> Sample:
    features = np.arange(count, dtype=np.float16)[:, None].repeat(3, 1)
    boxes = np.full((count, 4), 1.0005, np.float16)
    probs = np.eye(count, 5, dtype=np.float16)
    scores = None if confidence is None else np.array(confidence, np.float16)
    return Sample("key", regions=Regions(features, boxes, scores, probs))


def test_the_surest_regions_are_kept_in_their_order() -> None:
    found = RegionImages(feature_width=3, max_regions=2).prepare(regions(4, [0.1, 0.9, 0.3, 0.5]))
    assert found is not None
    assert found.features_RD[:, 0].tolist() == [1, 3]
    assert found.confidence_R is not None
    assert np.allclose(found.confidence_R, [0.9, 0.5], atol=1e-3)
    assert found.class_probs_RC is not None
    assert found.class_probs_RC.argmax(1).tolist() == [1, 3]
    for array in (found.features_RD, found.boxes_R4, found.confidence_R):
        assert array.dtype == np.float32
    assert found.class_probs_RC.dtype == np.float16  # as in the shard: few of them are asked for
    assert found.boxes_R4.max() == 1, "boxes are clipped"


def test_without_confidence_the_first_regions_are_kept() -> None:
    images = RegionImages(feature_width=3, max_regions=2)
    found = images.prepare(regions(4, None))
    assert found is not None
    assert found.features_RD[:, 0].tolist() == [0, 1]
    assert [images.tokens(count) for count in (0, 1, 4)] == [0, 1, 2]


def test_what_is_prepared_may_be_written_into() -> None:
    sample = regions(4, None)
    found = RegionImages(feature_width=3).prepare(sample)
    assert found is not None
    assert sample.regions is not None
    found.features_RD[:] = -1
    found.boxes_R4[:] = -1
    assert sample.regions.features_RD.min() == 0
    assert sample.regions.boxes_R4.min() > 1


def test_features_of_another_width_are_a_fault() -> None:
    with pytest.raises(Fault, match="3 numbers per region, not 5"):
        RegionImages(feature_width=5).prepare(regions(2, None))


def test_a_model_of_regions_and_pixels_wants_both() -> None:
    both = BothImages(RegionImages(feature_width=3), PLAIN)
    sample = regions(2, None)
    with pytest.raises(Fault, match="image is missing"):
        both.prepare(sample)
    with pytest.raises(Fault, match="features is missing"):
        both.prepare(Sample("key", image=encoded(ramps())))


def test_the_whole_image_stands_before_the_best_regions() -> None:
    images = RegionImages(feature_width=3, max_regions=2, whole=True)
    features = np.arange(9, dtype=np.float32).reshape(3, 3)
    boxes = np.array([[0, 0, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 1, 1]], np.float32)
    confidence = np.array([0.9, 0.1, 0.8], np.float32)
    made = images.prepare(Sample("s", regions=Regions(features, boxes, confidence, classes_R=np.array([4, 5, 6]))))
    assert made is not None
    assert made.whole
    assert made.features_RD.tolist() == [[3, 4, 5], [0, 1, 2], [6, 7, 8]]  # the mean of those that are kept
    assert made.boxes_R4[:2].tolist() == [[0, 0, 1, 1], [0, 0, 0.5, 0.5]]
    assert made.confidence_R is not None
    assert made.confidence_R.tolist() == [1, pytest.approx(0.9), pytest.approx(0.8)]
    assert made.classes_R is not None
    assert made.classes_R.tolist() == [-1, 4, 6]
    assert (images.tokens(3), images.tokens(1), images.tokens(0)) == (3, 2, 0)
