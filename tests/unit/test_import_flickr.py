from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_tools.importers.flickr import read_flickr
from data_tools.report import Report
from tests.unit.import_running import samples_of, saved_report, skipped, vlp_data
from tests.unit.shard_making import photo
from vlp.data.index import open_index
from vlp.errors import DataError


def _files(folder: Path, tokens: str, split: str) -> tuple[Path, Path]:
    (folder / "x.token.txt").write_text(tokens, encoding="utf-8")
    (folder / "x.split.txt").write_text(split, encoding="utf-8")
    return folder / "x.token.txt", folder / "x.split.txt"


def test_images_of_the_list_in_its_order(tmp_path: Path) -> None:
    tokens = "a.jpg#0\tone\nb.jpg.1#0\ttwo\na.jpg#1\tba\tchó \nc.jpg#0\tx\n"
    report = Report({})
    records = read_flickr(*_files(tmp_path, tokens, "b.jpg\r\n\na\n"), report)
    assert [(record.file, record.captions) for record in records] == [
        ("b.jpg", ("two",)),
        ("a.jpg", ("one", "ba\tchó ")),
    ]
    assert report.read == {"captions": 4, "images of the split": 2}
    assert skipped(report) == {"image not in --split": (1, ["c.jpg"])}


def test_what_is_wrong_is_skipped(tmp_path: Path) -> None:
    tokens = "a.jpg#0\tone\nno tab\nb.png#0\tx\n.jpg#0\tx\n"
    report = Report({})
    assert len(read_flickr(*_files(tmp_path, tokens, "a.jpg\na.jpg\nz.jpg\n"), report)) == 1
    assert skipped(report) == {
        "line without <image>.jpg#<number><TAB>caption": (3, ["line 2", "line 3", "line 4"]),
        "image stands twice in --split": (1, ["line 2"]),
        "image of --split without a caption in --tokens": (1, ["z.jpg"]),
    }


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.token\.txt: has no line <image>\.jpg#<number><TAB>caption; give"):
        read_flickr(*_files(tmp_path, "image,caption\na.jpg,one\n", "a.jpg"), Report({}))
    with pytest.raises(DataError, match=r"x\.split\.txt: names no image of .*x\.token\.txt; give a list"):
        read_flickr(*_files(tmp_path, "a.jpg#0\tone\n", "train\n"), Report({}))


def test_photos_or_vectors_but_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens, split = _files(tmp_path, "a.jpg#0\tone\nb.jpg#0\ttwo\n", "a.jpg\nb.jpg\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(photo())
    np.savez(tmp_path / "x.npz", image_id=np.array(["b", "a"]), features=np.arange(6, dtype=np.float16).reshape(2, 3))
    words = ("flickr", "--tokens", tokens, "--split", split, "--out")
    assert vlp_data(*words, tmp_path / "photos", "--images", tmp_path / "images") == 0
    assert [sample.image for sample in samples_of(tmp_path / "photos")] == [photo()]
    assert vlp_data(*words, tmp_path / "vectors", "--features", tmp_path / "x.npz") == 0
    first, second = samples_of(tmp_path / "vectors")
    assert first.regions is not None
    assert second.regions is not None
    assert (first.image, first.captions, first.regions.boxes_R4.tolist()) == (None, ("one",), [[0, 0, 1, 1]])
    assert (first.regions.features_RD.tolist(), second.regions.features_RD.tolist()) == ([[3, 4, 5]], [[0, 1, 2]])
    assert vlp_data(*words, tmp_path / "none") == 2
    assert "--images" in capsys.readouterr().err
    assert vlp_data(*words, tmp_path / "none", "--features", tmp_path / "x.npz", "--regions", tmp_path / "images") == 2
    assert "leave one out" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_flickr8k(tmp_path: Path, test_data: Path) -> None:
    source, out = test_data / "flickr8k", tmp_path / "out"
    tokens, vectors = source / "Flickr8k.token.txt", source / "vgg16_fc1_pca1024.npz"
    packed = np.load(vectors)
    for split, images in (("train", 6000), ("dev", 1000)):
        report = Report({})
        records = read_flickr(tokens, source / f"Flickr_8k.{split}Images.txt", report)
        assert (len(records), sum(len(record.captions) for record in records)) == (images, 5 * images)
        assert {record.file.removesuffix(".jpg") for record in records} <= set(packed["image_id"].tolist())
        assert list(report.skipped) == ["image not in --split"]
        assert report.skipped["image not in --split"].count == 7092 - images
    words = ("--tokens", tokens, "--split", source / "Flickr_8k.devImages.txt", "--features", vectors, "--out", out)
    assert vlp_data("flickr", *words) == 0
    manifest, saved = open_index(out).manifest, saved_report(out)
    assert (manifest.samples, manifest.shards[0].captions, manifest.feature_width) == (1000, 5000, 1024)
    assert (saved["notes"], saved["written"]["regions"]) == ([], 1000)
    sample = samples_of(out)[7]
    assert sample.regions is not None
    assert sample.captions == records[7].captions
    row = packed["image_id"].tolist().index(sample.key)
    np.testing.assert_array_equal(sample.regions.features_RD, packed["features"][row : row + 1])


def test_the_key_of_flickr8k_that_has_a_number_too_many(tmp_path: Path, test_data: Path) -> None:
    split = tmp_path / "x.txt"
    split.write_text("2258277193_586949ec62.jpg\n")
    (record,) = read_flickr(test_data / "flickr8k" / "Flickr8k.token.txt", split, Report({}))
    assert len(record.captions) == 5


def test_flickr8k_photos_with_regions(tmp_path: Path, test_data: Path) -> None:
    source, out = test_data / "flickr8k", tmp_path / "out"
    words = ("--tokens", source / "Flickr8k.token.txt", "--split", source / "Flickr_8k.trainImages.txt", "--out", out)
    assert vlp_data("flickr", *words, "--images", source / "images", "--regions", test_data / "regions/flickr8k") == 0
    manifest, report = open_index(out).manifest, saved_report(out)
    assert (manifest.samples, manifest.feature_width, manifest.class_count) == (230, 1280, 81)
    assert report["skipped"]["image missing"][0] == 6000 - 230
