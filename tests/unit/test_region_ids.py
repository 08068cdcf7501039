"""Numbers of classes and attributes, with their confidences, from the writer to the model's input."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.writer import ShardWriter
from tests.unit.shard_making import photo, region_members, some_regions, write_tar
from tests.unit.task_making import example, hide
from vlp.data.image import RegionImages
from vlp.data.index import build_index, open_index
from vlp.data.shards import BadSample, ShardReader
from vlp.errors import DataError
from vlp.objectives.regions import RegionHidingConfig
from vlp.seeds import draw
from vlp.types import RegionInput, Regions


def labelled(count: int, classes: list[int] | None = None) -> Regions:
    random = np.random.default_rng(count)
    return replace(
        some_regions(count, count),
        classes_R=np.array(classes) if classes is not None else random.integers(0, 90, count),
        attributes_R=random.integers(0, 40, count).astype(np.int32),
        attribute_confidence_R=random.random(count).astype(np.float16),
    )


def _written(out: Path, regions: list[Regions | None], **more: Any) -> ShardReader:
    with ShardWriter(out, samples_per_shard=2) as writer:
        for number, seen in enumerate(regions):
            writer.write(f"s{number}", photo(number), "jpg", seen, ["a"])
    build_index(out, **more)
    return ShardReader(open_index(out))


def _read(reader: ShardReader, shard: int, row: int) -> Regions:
    regions = reader.read(shard, row, image=False, regions=True, texts=False).regions
    assert regions is not None
    return regions


def test_they_come_back_as_they_were_written(tmp_path: Path) -> None:
    wanted = labelled(5)
    regions = _read(_written(tmp_path, [None, some_regions(2), wanted]), 1, 0)
    np.testing.assert_array_equal(regions.classes_R, np.asarray(wanted.classes_R))
    np.testing.assert_array_equal(regions.attributes_R, np.asarray(wanted.attributes_R))
    np.testing.assert_array_equal(regions.attribute_confidence_R, np.asarray(wanted.attribute_confidence_R))
    assert (regions.classes_R.dtype, regions.attributes_R.dtype) == (np.int64, np.int64)  # type: ignore[union-attr]
    without = _read(_written(tmp_path / "more", [some_regions(2)]), 0, 0)
    assert (without.classes_R, without.attributes_R, without.attribute_confidence_R) == (None, None, None)


def test_a_packed_npz_may_hold_them_too(tmp_path: Path) -> None:
    wanted, stream = labelled(3), io.BytesIO()
    np.savez(
        stream,
        features=wanted.features_RD,
        boxes=wanted.boxes_R4,
        classes=np.asarray(wanted.classes_R),
        attributes=np.asarray(wanted.attributes_R),
        attribute_confidence=np.asarray(wanted.attribute_confidence_R),
    )
    write_tar(tmp_path / "x.tar", [("a.regions.npz", stream.getvalue())])
    manifest = build_index(tmp_path)
    regions = _read(ShardReader(open_index(tmp_path)), 0, 0)
    np.testing.assert_array_equal(regions.classes_R, np.asarray(wanted.classes_R))
    assert manifest.class_ids == int(np.asarray(wanted.classes_R).max()) + 1


def test_the_manifest_says_how_many_there_are(tmp_path: Path) -> None:
    samples = [labelled(2, [3, 8]), labelled(1, [6]), None, labelled(1, [11])]
    bare = _written(tmp_path / "bare", samples).index.manifest
    assert bare.class_ids == 12
    declared = _written(tmp_path / "told", samples, made_by={"regions": {"classes": 1600, "attributes": 400}})
    assert (declared.index.manifest.class_ids, declared.index.manifest.attribute_ids) == (1600, 400)
    again = build_index(tmp_path / "told")  # notes are kept, and unchanged shards are not read
    assert (again.class_ids, again.attribute_ids) == (1600, 400)
    short = _written(tmp_path / "short", samples, made_by={"regions": {"classes": 5}}).index.manifest
    assert short.class_ids == 12
    none = _written(tmp_path / "none", [some_regions(2)], made_by={"regions": {"classes": 1600}}).index.manifest
    assert (none.class_ids, none.attribute_ids) == (None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": np.array([1, -1])}, "classes has the number -1"),
        ({"classes": np.array([1, 1 << 40])}, "classes has the number 1099511627776"),
        ({"attributes": np.array([1.0, 2.0])}, "attributes holds float64, not whole numbers"),
        ({"attributes": np.array([1, 2, 3])}, "attributes has 3 rows where features has 2"),
        ({"classes": np.array([[1, 2]])}, r"classes has shape \[1, 2\], not \[R\]"),
        ({"attribute_confidence": np.ones((2, 2), np.float32)}, "attribute_confidence has shape"),
    ],
)
def test_wrong_ones_are_refused_at_the_index(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_tar(tmp_path / "x.tar", region_members("a", **changes))
    with pytest.raises(DataError, match=f"x.tar: sample 'a': {said}"):
        build_index(tmp_path)


def test_a_number_beyond_the_index_is_a_bad_sample(tmp_path: Path) -> None:
    reader = _written(tmp_path, [labelled(2, [3, 8])])
    reader.index.manifest = reader.index.manifest.model_copy(update={"class_ids": 8})
    with pytest.raises(BadSample, match="classes has the number 8 where the index has 8"):
        _read(reader, 0, 0)


def test_the_model_gets_those_of_the_regions_that_it_keeps(tmp_path: Path) -> None:
    reader = _written(tmp_path, [labelled(6)])
    sample = reader.read(0, 0, image=False, regions=True, texts=False)
    assert sample.regions is not None
    made = RegionImages(feature_width=sample.regions.features_RD.shape[1], max_regions=4).prepare(sample)
    assert made is not None
    kept = np.sort(np.argsort(-np.asarray(sample.regions.confidence_R))[:4])
    for name in ("classes_R", "attributes_R", "attribute_confidence_R"):
        np.testing.assert_array_equal(getattr(made, name), getattr(sample.regions, name)[kept])


def test_hiding_leaves_them_be() -> None:
    made = example(regions=5)
    assert isinstance(made.image, RegionInput)
    made.image.classes_R = np.arange(5)
    made.image.attributes_R = np.arange(5) + 5
    made.image.attribute_confidence_R = np.ones(5, np.float32)
    hide(made, RegionHidingConfig(), draw(0, "t"))
    image = made.image
    assert isinstance(image, RegionInput)
    assert np.asarray(image.classes_R).tolist() == [0, 1, 2, 3, 4]
    assert np.asarray(image.attributes_R).tolist() == [5, 6, 7, 8, 9]
    assert image.attribute_confidence_R is not None
