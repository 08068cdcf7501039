"""Region features that people have: TSV, npz per image, npz of vectors."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.regions.sources import NpzRegions, RegionSource, VectorRegions, open_regions
from data_tools.regions.tsv import TsvRegions
from tests.unit.region_making import HEIGHT, WIDTH, encoded, pixel_boxes, tsv_line, write_tsv
from tests.unit.shard_making import some_regions
from vlp.data.samples import Fault
from vlp.errors import ConfigError, DataError
from vlp.types import Regions


def _read(source: RegionSource, image: str) -> Regions:
    regions = source.read(image)
    assert regions is not None
    return regions


# -------------------------------------------------------------------------------------------------------------- TSV


@pytest.mark.parametrize("columns", [6, 7, 10])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_tsv_is_told_by_its_columns(tmp_path: Path, columns: int, end: str) -> None:
    path = write_tsv(tmp_path / "x.tsv", [tsv_line("a", columns), tsv_line("b.v2", columns, count=7, number=1)], end)
    source = open_regions(path)
    regions = _read(source, "folder/b.v2.jpg")
    random = np.random.default_rng(1)
    np.testing.assert_array_equal(regions.features_RD, random.random((7, 5)).astype(np.float32))
    wanted = pixel_boxes(7, 1) / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
    np.testing.assert_allclose(regions.boxes_R4, wanted, atol=1e-6)
    assert regions.features_RD.dtype == regions.boxes_R4.dtype == np.float32
    confidence = random.random(7).astype(np.float32)
    if columns == 10:
        assert regions.confidence_R is not None
        assert regions.attribute_confidence_R is not None
        np.testing.assert_array_equal(regions.classes_R, random.integers(0, 1600, 7))
        np.testing.assert_array_equal(regions.attributes_R, random.integers(0, 400, 7))
        np.testing.assert_array_equal(regions.confidence_R, confidence)  # in the order of the file
        np.testing.assert_array_equal(regions.attribute_confidence_R, confidence / 2)
        assert source.provenance == {"from": "tsv", "source": "x.tsv", "classes": 1600, "attributes": 400}
    else:
        assert regions.classes_R is None
        assert "classes" not in source.provenance
        assert (regions.class_probs_RC is not None) == (columns == 7)
    assert source.read("nowhere.jpg") is None


@pytest.mark.parametrize("columns", [6, 10])
def test_sides_in_the_other_order_are_told_by_the_boxes(tmp_path: Path, columns: int) -> None:
    ours = (HEIGHT, WIDTH) if columns == 10 else (WIDTH, HEIGHT)
    lines = [tsv_line(name, columns, sides=ours[::-1], number=number) for number, name in enumerate("abc")]
    np.testing.assert_allclose(
        _read(open_regions(write_tsv(tmp_path / "x.tsv", lines)), "a.jpg").boxes_R4,
        _read(open_regions(write_tsv(tmp_path / "y.tsv", [tsv_line("a", columns)])), "a.jpg").boxes_R4,
    )


@pytest.mark.parametrize(("columns", "sides"), [(6, (WIDTH, HEIGHT)), (7, (WIDTH, HEIGHT)), (10, (HEIGHT, WIDTH))])
def test_sides_that_the_boxes_do_not_tell_are_in_the_usual_order(
    tmp_path: Path, columns: int, sides: tuple[int, int]
) -> None:
    path = write_tsv(tmp_path / "x.tsv", [tsv_line("a", columns, sides=[10 * side for side in sides])])
    wanted = pixel_boxes(3) / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT]) / 10
    np.testing.assert_allclose(_read(open_regions(path), "a.jpg").boxes_R4, wanted, atol=1e-6)


def test_a_header_and_empty_lines_are_no_images(tmp_path: Path) -> None:
    header = "image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures"
    source = TsvRegions(write_tsv(tmp_path / "x.tsv", ["\ufeff" + header, "", tsv_line("a", 6), ""]))
    assert len(source) == 1
    assert len(_read(source, "a.jpg")) == 3


@pytest.mark.parametrize(
    ("stored", "image", "found"),
    [
        ("COCO_train2014_000000000042", "000000000042.jpg", True),
        ("COCO_train2014_000000000042", "train2014/COCO_train2014_000000000042.jpg", True),
        ("42", "COCO_val2014_000000000042.jpg", True),
        ("42", "42", True),
        ("42", "a_42.jpg", False),
        ("42", "420.jpg", False),
        ("flickr_42", "42.jpg", False),
        ("a.v2", "a.v2.png", True),
    ],
)
def test_coco_images_are_found_by_their_number(tmp_path: Path, stored: str, image: str, found: bool) -> None:
    source = open_regions(write_tsv(tmp_path / "x.tsv", [tsv_line("other"), tsv_line(stored)]))
    assert source.entry(image) == (stored if found else None)


def test_a_number_of_two_entries_finds_neither(tmp_path: Path) -> None:
    source = open_regions(write_tsv(tmp_path / "x.tsv", [tsv_line("7"), tsv_line("007", number=1)]))
    assert (source.entry("7.jpg"), source.entry("007.jpg"), source.entry("00007.jpg")) == ("7", "007", None)


def test_of_a_repeated_id_the_first_line_counts(tmp_path: Path) -> None:
    source = open_regions(write_tsv(tmp_path / "x.tsv", [tsv_line("a", count=2), tsv_line("a", count=3)]))
    assert len(_read(source, "a.jpg")) == 2
    assert source.provenance["repeated_ids"] == 1


def test_fields_longer_than_csv_takes(tmp_path: Path) -> None:
    source = open_regions(write_tsv(tmp_path / "x.tsv", [tsv_line("a", 6, count=1, width=40_000)]))
    assert _read(source, "a.jpg").features_RD.shape == (1, 40_000)


def _lengths(source: RegionSource) -> list[int]:
    return [len(_read(source, f"{name}.jpg")) for name in range(5)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_many_processes_read_one_tsv(tmp_path: Path, method: str) -> None:
    lines = [tsv_line(str(name), count=name + 1) for name in range(5)]
    source = open_regions(write_tsv(tmp_path / "x.tsv", lines))
    assert _lengths(source) == [1, 2, 3, 4, 5]  # a descriptor is open when the copies are made
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_lengths, [source] * 3) == [[1, 2, 3, 4, 5]] * 3


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.booleans(), st.booleans())
def test_any_lines_are_found_again(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], crlf: bool, cut: bool
) -> None:
    path = write_tsv(
        tmp_path_factory.mktemp("tsv") / "x.tsv",
        [tsv_line(f"i{number}", count=count, number=number) for number, count in enumerate(counts)],
        "\r\n" if crlf else "\n",
    )
    if cut:  # a last line without an end
        path.write_bytes(path.read_bytes().rstrip(b"\r\n"))
    source = open_regions(path)
    assert [len(_read(source, f"i{number}.jpg")) for number in range(len(counts))] == counts


def _damaged(**changes: str) -> str:
    names = (
        "id",
        "h",
        "w",
        "classes",
        "confidence",
        "attributes",
        "attribute_confidence",
        "count",
        "boxes",
        "features",
    )
    fields = dict(zip(names, tsv_line("bad").split("\t"), strict=True))
    return "\t".join({**fields, **changes}.values())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (_damaged(boxes="%%%"), "boxes is not base64"),
        (_damaged(features=encoded(np.zeros(7, np.float32))), "features has 28 bytes, which are no 3 rows of numbers"),
        (_damaged(confidence=encoded(np.zeros(2, np.float32))), "confidence has 8 bytes"),
        (_damaged(count="3.5"), "count is b'3.5', not a whole number"),
        (_damaged(count="-3"), "not a whole number"),
        (_damaged(count="99999999"), "tells of 99999999 boxes"),
        (_damaged(w="0"), "an image of 0 x 100 pixels"),
        (_damaged(w="20"), "outside 0..1"),
        (_damaged(features=encoded(np.full(3, np.nan, np.float32))), "not finite"),
        (_damaged(classes=encoded(np.full(3, -1))), "has the number -1"),
        ("bad\t1\t2", "has 3 columns, not 10"),
    ],
)
def test_a_damaged_line_is_a_fault_of_its_image(tmp_path: Path, line: str, said: str) -> None:
    source = open_regions(write_tsv(tmp_path / "x.tsv", [tsv_line("good"), line, tsv_line("fine")]))
    with pytest.raises(Fault, match=said.replace(".", r"\.")):
        source.read("bad.jpg")
    assert len(_read(source, "fine.jpg")) == 3


def test_an_image_without_boxes_has_no_regions(tmp_path: Path) -> None:
    source = open_regions(write_tsv(tmp_path / "x.tsv", [tsv_line("good"), _damaged(count="0")]))
    assert source.read("bad.jpg") is None


@pytest.mark.parametrize("content", ["", "\n", "a caption without a tab\n", "a.jpg\ta caption\n", "\tno id\n"])
def test_a_tsv_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.tsv").write_text(content)
    with pytest.raises(DataError, match=r"x\.tsv"):
        open_regions(tmp_path / "x.tsv")


def test_the_files_of_the_detectors_authors(test_data: Path) -> None:
    source = open_regions(test_data / "butd_sample" / "train2014_obj36.tsv")
    assert isinstance(source, TsvRegions)
    assert len(source) == 10
    regions = _read(source, "COCO_train2014_000000132417.jpg")
    assert regions.features_RD.shape == (36, 2048)
    assert regions.features_RD.max() == pytest.approx(33.474327)
    assert source.entry("000000132417.jpg") == "COCO_train2014_000000132417"
    everything = [_read(source, name) for name in source._table]
    classes = np.concatenate([regions.classes_R for regions in everything if regions.classes_R is not None])
    attributes = np.concatenate([regions.attributes_R for regions in everything if regions.attributes_R is not None])
    assert (classes.min(), classes.max(), attributes.min(), attributes.max()) == (33, 1525, 0, 310)
    confidence = np.stack([regions.confidence_R for regions in everything if regions.confidence_R is not None])
    assert (confidence.min(), confidence.max()) == pytest.approx((0.0693, 0.9696), abs=1e-4)
    assert (np.diff(confidence) > 0).any()  # not sorted
    assert max(regions.boxes_R4.max() for regions in everything) <= 1


# ---------------------------------------------------------------------------------------------------------- vectors


def _vectors(path: Path, ids: Any, features: Any) -> Path:
    np.savez_compressed(path, image_id=np.array(ids), features=features)
    return path


@pytest.mark.parametrize("ids", [["a", "b.v2", "c.jpg"], [b"a", b"b.v2", b"c.jpg"]])
def test_a_vector_is_one_region_that_is_the_whole_image(tmp_path: Path, ids: list[Any]) -> None:
    features = np.arange(12, dtype=np.float16).reshape(3, 4)
    source = open_regions(_vectors(tmp_path / "x.npz", ids, features))
    for row, image in enumerate(["a.jpg", "folder/b.v2.png", "c.jpg"]):
        regions = _read(source, image)
        np.testing.assert_array_equal(regions.features_RD, features[row : row + 1])  # raw, as they were
        assert regions.features_RD.dtype == np.float16
        assert regions.boxes_R4.tolist() == [[0, 0, 1, 1]]
    assert source.read("d.jpg") is None
    assert source.provenance == {"from": "vectors", "source": "x.npz"}


def test_vectors_are_not_pickled_along(tmp_path: Path) -> None:
    source = open_regions(_vectors(tmp_path / "x.npz", ["a", "b"], np.ones((2, 10_000), np.float32)))
    packed = pickle.dumps(source)
    assert len(packed) < 2_000
    assert _read(pickle.loads(packed), "a.jpg").features_RD.shape == (1, 10_000)


def test_vectors_are_standardised_by_the_images_that_are_named(tmp_path: Path) -> None:
    features = np.array([[1, 5], [3, 5], [100, 7]], np.float32)
    source = VectorRegions(_vectors(tmp_path / "x.npz", ["a", "b", "c"], features))
    source.standardise(["a.jpg", "b", "a.jpg", "not_there.jpg"])
    rows = np.concatenate([_read(source, image).features_RD for image in ("a.jpg", "b.jpg", "c.jpg")])
    np.testing.assert_allclose(rows, [[-1, 0], [1, 0], [98, 2]])  # mean 2 and 5, deviation 1 and none
    assert source.provenance["standardised_by_images"] == 2
    assert _read(pickle.loads(pickle.dumps(source)), "c.jpg").features_RD.tolist() == [[98, 2]]
    with pytest.raises(DataError, match="has 1 of the images to standardise by"):
        source.standardise(["a.jpg", "x.jpg"])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"features": np.ones((2, 3), np.float32)}, "has no 'image_id'"),
        ({"image_id": np.array(["a", "b"])}, "has no 'features'"),
        ({"image_id": np.array(["a"]), "features": np.ones((2, 3), np.float32)}, "one id and one vector per image"),
        ({"image_id": np.array(["a", "a.jpg"]), "features": np.ones((2, 3), np.float32)}, "1 of its image ids stand"),
        ({"image_id": np.array(["a", "b"]), "features": np.ones((2, 3), np.int64)}, "not floating-point numbers"),
        ({"image_id": np.array(["a", "b"]), "features": np.ones((2, 3, 4), np.float32)}, "not floating-point numbers"),
        ({"image_id": np.array([{}, 1], object), "features": np.ones((2, 3), np.float32)}, "pickled Python objects"),
    ],
)
def test_vectors_of_another_form_are_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=said):
        open_regions(tmp_path / "x.npz")


def test_the_flickr_vectors(test_data: Path) -> None:
    source = open_regions(test_data / "flickr8k" / "vgg16_fc1_pca1024.npz")
    assert isinstance(source, VectorRegions)
    train = (test_data / "flickr8k" / "Flickr_8k.trainImages.txt").read_text().split()
    raw = np.concatenate([_read(source, image).features_RD for image in train[:500]]).astype(np.float32)
    source.standardise(train)
    made = np.concatenate([_read(source, image).features_RD for image in train])
    assert raw.std(axis=0).max() < 0.2
    np.testing.assert_allclose((made.mean(axis=0), made.std(axis=0)), (np.zeros(1024), np.ones(1024)), atol=1e-4)


# -------------------------------------------------------------------------------------------------------------- npz


def _npz(path: Path, count: int = 2, columns: int = 6) -> None:
    regions = some_regions(count)
    sides = regions.boxes_R4[:, 2:] - regions.boxes_R4[:, :2]
    area = sides.prod(axis=1, keepdims=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        features=regions.features_RD,
        norm_bb=np.hstack([regions.boxes_R4, sides, area])[:, :columns].astype(np.float16),
        conf=np.asarray(regions.confidence_R, np.float16),
        soft_labels=regions.class_probs_RC,
    )


@pytest.mark.parametrize("columns", [4, 6, 7])
def test_an_npz_per_image(tmp_path: Path, columns: int) -> None:
    _npz(tmp_path / "a.b.npz", 4, columns)
    source = open_regions(tmp_path)
    regions, wanted = _read(source, "folder/a.b.jpg"), some_regions(4)
    np.testing.assert_array_equal(regions.features_RD, wanted.features_RD)
    np.testing.assert_allclose(regions.boxes_R4, wanted.boxes_R4, atol=5e-4)
    assert regions.class_probs_RC is not None
    np.testing.assert_array_equal(regions.class_probs_RC, wanted.class_probs_RC)
    assert (regions.features_RD.dtype, regions.class_probs_RC.dtype) == (np.float16, np.float16)
    assert source.read("b.jpg") is None


def test_an_npz_is_looked_for_where_the_image_lies_and_then_by_its_name(tmp_path: Path) -> None:
    for number, name in enumerate(["1", "x/1", "x/2"], start=1):
        _npz(tmp_path / f"{name}.npz", number)
    source = NpzRegions(tmp_path)
    names = ["1.jpg", "x/1.jpg", "y/1.jpg", "x/2.jpg", "2.jpg"]
    assert [source.entry(name) for name in names] == ["1.npz", "x/1.npz", "1.npz", "x/2.npz", None]
    assert [len(_read(source, name)) for name in names[:4]] == [1, 2, 1, 3]


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "no such file or directory"), ("empty", r"holds no \.npz file"), ("file.csv", "is neither")],
)
def test_a_path_that_holds_no_regions_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").write_text("x")
    with pytest.raises(ConfigError, match=f"--npz .*{name}: {said}"):
        open_regions(tmp_path / name, "--npz")
