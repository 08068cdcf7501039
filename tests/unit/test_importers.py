from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.folders import files_of
from tests.unit.import_running import samples_of, saved_report, vlp_data
from tests.unit.shard_making import CLASSES, WIDTH, photo, some_regions
from vlp.data.index import open_index
from vlp.data.shards import ShardReader


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b.v2.jpg", "sub/a.jpg"]):
        (folder / name).write_bytes(photo(number, (40 + number, 30)))
    (folder / "png_named.jpg").write_bytes(photo(3, kind="PNG"))
    (folder / "broken.jpg").write_bytes(photo(4)[:-200])
    (folder / "text.jpg").write_bytes(b"not an image")
    (tmp_path / "secret.jpg").write_bytes(photo(5))
    return folder


@pytest.fixture
def coco_file(tmp_path: Path, images: Path) -> Path:
    names = ["a.jpg", "b.v2.jpg", "sub/a.jpg", "png_named.jpg", "broken.jpg", "text.jpg", "none.jpg", "../secret.jpg"]
    listed: list[Any] = [{"id": i, "file_name": name, "width": 9, "height": 9} for i, name in enumerate(names)]
    notes: list[Any] = [{"id": 100 + i, "image_id": i, "caption": f" caption of {i} "} for i in range(len(names))]
    listed += [{"id": 0, "file_name": "a.jpg"}, {"id": 99}, {"id": 50, "file_name": "a.jpg"}]
    notes += [
        {"image_id": 0, "caption": "cho\u0301"},
        {"image_id": 0, "caption": " \n"},
        {"image_id": 77, "caption": "x"},
    ]
    notes += [{"image_id": 0, "caption": None}]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": listed, "annotations": notes}))
    return path


def test_coco_takes_what_holds_and_says_what_it_skips(
    tmp_path: Path, coco_file: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert vlp_data("coco", "--captions", coco_file, "--images", images, "--out", out) == 0
    samples = samples_of(out)
    assert [sample.key for sample in samples] == ["a", "b_v2", "sub_a", "png_named"]
    assert samples[0].captions == ("caption of 0", "chó")
    assert samples[0].image == (images / "a.jpg").read_bytes()
    table = open_index(out).table(0)
    assert table.width_S.tolist() == [40, 41, 42, 20]  # of the files, not of the JSON
    assert table.members["png"][1].tolist()[:3] == [-1, -1, -1]  # an image's own kind, not its file's name
    record = json.loads(ShardReader(open_index(out)).member(table, 0, 1, "json") or b"")
    assert (record["id"], record["image_id"], record["width"], record["height"]) == ("b.v2", 1, 41, 30)

    report = saved_report(out)
    assert report["read"] == {"images": 11, "captions": 12}
    assert report["written"] == {"captions": 5, "samples": 4, "shards": 1}
    assert report["skipped"] == {
        "image id stands twice": (1, ["a.jpg"]),
        "image without 'id' or 'file_name'": (1, ["images[9]"]),
        "annotation of an image that the file does not list": (1, ["image_id 77"]),
        "annotation without 'image_id' or 'caption'": (1, ["annotations[11]"]),
        "empty caption": (1, ["a.jpg"]),
        "image does not decode": (1, ["broken.jpg"]),
        "image is not a JPEG, PNG or WebP image": (1, ["text.jpg"]),
        "image missing": (1, ["none.jpg"]),
        "image name points outside the directory of images": (1, ["../secret.jpg"]),
        "image without a text": (1, ["a.jpg"]),
    }
    said = capsys.readouterr().out
    assert "skipped 1: image missing (none.jpg)" in said
    assert "wrote 5 captions, 4 samples" in said


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, coco_file: Path, images: Path) -> None:
    for name in ("one", "two"):
        words = ("--captions", coco_file, "--images", images, "--out", tmp_path / name, "--samples-per-shard", 2)
        assert vlp_data("coco", *words) == 0
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert [entry.samples for entry in open_index(tmp_path / "one").manifest.shards] == [2, 2]


def test_regions_are_merged_by_image_id(tmp_path: Path, images: Path) -> None:
    folder, out = tmp_path / "regions", tmp_path / "out"
    folder.mkdir()
    seen = some_regions(3)
    sides = seen.boxes_R4[:, 2:] - seen.boxes_R4[:, :2]
    arrays = {
        "features": seen.features_RD,
        "norm_bb": np.hstack([seen.boxes_R4, sides]).astype(np.float16),
        "conf": seen.confidence_R,
        "soft_labels": seen.class_probs_RC,
    }
    np.savez(folder / "a.npz", **arrays)
    np.savez(folder / "png_named.npz", **{**arrays, "features": np.full((3, WIDTH), np.nan, np.float16)})
    lines = ["a.jpg\ta", "b.v2.jpg\tb", "png_named.jpg\tc"]
    (tmp_path / "x.tsv").write_text("\n".join(lines))
    words = ("--file", tmp_path / "x.tsv", "--images", images, "--out", out, "--regions")
    assert vlp_data("tsv", *words, folder) == 0
    first, second = samples_of(out)
    assert first.regions is not None
    np.testing.assert_array_equal(first.regions.features_RD, seen.features_RD)
    np.testing.assert_allclose(first.regions.boxes_R4, seen.boxes_R4, atol=5e-4)
    assert (first.regions.features_RD.dtype, first.regions.boxes_R4.dtype) == (np.float16, np.float32)
    assert (second.key, second.regions) == ("b_v2", None)
    manifest, report = open_index(out).manifest, saved_report(out)
    assert (manifest.feature_width, manifest.class_count) == (WIDTH, CLASSES)
    assert list(report["skipped"]) == ["regions: features has a number that is not finite (NaN or infinite)"]
    assert report["notes"][0]["examples"] == ["b.v2.jpg"]
    assert vlp_data("tsv", *words, tmp_path / "nowhere") == 2
    assert vlp_data("tsv", *words, images) == 2


def test_pickled_regions_are_refused(tmp_path: Path, images: Path) -> None:
    np.savez(tmp_path / "a.npz", features=np.array([{"a": 1}], object))
    (tmp_path / "x.tsv").write_text("a.jpg\ta\nb.v2.jpg\tb\n")
    words = ("--file", tmp_path / "x.tsv", "--images", images, "--regions", tmp_path, "--out", tmp_path / "out")
    assert vlp_data("tsv", *words) == 0
    assert "pickled Python objects" in next(iter(saved_report(tmp_path / "out")["skipped"]))


def test_tsv_groups_lines_by_image(tmp_path: Path, images: Path) -> None:
    lines = "\ufeffb.v2.jpg\tmột\r\na.jpg\ttwo\twith a tab\n\nb.v2.jpg\t three\u2028more \nno tab here\n\tno image\n"
    (tmp_path / "x.tsv").write_bytes(lines.encode())
    out = tmp_path / "out"
    assert vlp_data("tsv", "--file", tmp_path / "x.tsv", "--images", images, "--out", out) == 0
    assert {sample.key: sample.captions for sample in samples_of(out)} == {
        "b_v2": ("một", "three\u2028more"),
        "a": ("two\twith a tab",),
    }
    assert saved_report(out)["skipped"] == {"line without image<TAB>caption": (2, ["line 5", "line 6"])}


def test_a_tsv_that_is_not_utf8_is_refused_by_line(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.tsv").write_bytes(b"a.jpg\tone\nb.jpg\t\xff\n")
    assert vlp_data("tsv", "--file", tmp_path / "x.tsv", "--images", images, "--out", tmp_path / "out") == 1
    assert capsys.readouterr().err == f"vlp-data: {tmp_path}/x.tsv line 2: is not UTF-8; convert the file first\n"


def test_folder_takes_photos_with_the_texts_beside_them(tmp_path: Path, images: Path) -> None:
    (images / "a.txt").write_text("one\ntwo\n")
    (images / "b.v2.txt").write_text(" \n")
    (images / "sub" / "a.txt").write_text("below")
    (images / "png_named.txt").write_bytes(b"\xff")
    (images / "lonely.txt").write_text("no photo")
    out = tmp_path / "out"
    assert vlp_data("folder", "--images", images, "--out", out) == 0
    assert {sample.key: sample.captions for sample in samples_of(out)} == {"a": ("one", "two"), "sub_a": ("below",)}
    assert saved_report(out)["skipped"] == {
        "image without a .txt beside it": (2, ["broken.jpg", "text.jpg"]),
        "caption file that is not UTF-8": (1, ["png_named.txt"]),
        "caption file without an image": (1, ["lonely.txt"]),
        "empty caption": (1, ["b.v2.jpg"]),
        "image without a text": (1, ["b.v2.jpg"]),
    }


def test_nothing_left_is_an_error_that_says_why(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.tsv").write_text("none.jpg\ta\nnowhere.jpg\tb\ntext.jpg\tc\n")
    out = tmp_path / "out"
    assert vlp_data("tsv", "--file", tmp_path / "x.tsv", "--images", images, "--out", out) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"vlp-data: {out}: nothing is left to write: 2 x image missing, 1 x image is not a JPEG")
    assert said.err.count("\n") == 1
    assert not list(out.glob("*.tar"))
    assert saved_report(out)["read"] == {"captions": 3, "images": 3}


def test_shards_are_overwritten_on_demand_only(tmp_path: Path, images: Path, coco_file: Path) -> None:
    out = tmp_path / "out"
    words = ("coco", "--captions", coco_file, "--images", images, "--out", out)
    assert vlp_data(*words, "--samples-per-shard", 1) == 0
    before = files_of(out)
    assert vlp_data(*words) == 1
    assert vlp_data("coco", "--captions", tmp_path / "typo.json", *words[3:], "--overwrite") == 2
    assert files_of(out) == before
    assert vlp_data(*words, "--overwrite") == 0
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["shard-000000.tar"]


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', '{"images": {}, "annotations": []}'])
def test_a_file_that_is_not_coco_is_refused(
    tmp_path: Path, images: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(content)
    assert vlp_data("coco", "--captions", tmp_path / "x.json", "--images", images, "--out", tmp_path / "out") == 1
    assert "give COCO's captions_*.json" in capsys.readouterr().err


def test_wrong_use_exits_with_2(tmp_path: Path, coco_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vlp_data("coco", "--captions", coco_file) == 2
    assert vlp_data("coco", "--captions", coco_file, "--images", tmp_path / "no", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.endswith(f"vlp-data: --images {tmp_path}/no: no such directory\n")
    assert "Traceback" not in said
    assert vlp_data("index", tmp_path) == 1
    assert "holds no *.tar shard" in capsys.readouterr().err


def test_coco_mini(tmp_path: Path, test_data: Path) -> None:
    source, out = test_data / "coco_mini", tmp_path / "out"
    words = ("--captions", source / "annotations/captions_train.json", "--images", source / "images", "--out", out)
    assert vlp_data("coco", *words, "--regions", test_data / "regions/coco_mini") == 0
    report, manifest = saved_report(out), open_index(out).manifest
    assert report["written"] == {"captions": 400, "regions": 820, "samples": 80, "shards": 1}
    assert not report["skipped"]
    assert (manifest.feature_width, manifest.class_count, manifest.shards[0].captions) == (1280, 81, 400)
    samples = samples_of(out)
    assert all(caption == caption.strip() for sample in samples for caption in sample.captions)
    assert {
        min(open_index(out).table(0).width_S[row], open_index(out).table(0).height_S[row]) for row in range(80)
    } == {256}
    packed = np.load(test_data / "regions/coco_mini" / f"{samples[7].key}.npz")
    assert samples[7].regions is not None
    np.testing.assert_array_equal(samples[7].regions.features_RD, packed["features"])


def test_uit_viic_without_one_of_its_photos(tmp_path: Path, test_data: Path) -> None:
    source, out, images = test_data / "uit_viic", tmp_path / "out", tmp_path / "images"
    images.mkdir()
    lines = (source / "captions.tsv").read_text(encoding="utf-8").split("\n")[:500]
    names = sorted({line.split("\t")[0] for line in lines})
    for name in names[1:]:
        (images / name).symlink_to((source / "images" / name).resolve())
    (tmp_path / "x.tsv").write_text("\n".join(lines), encoding="utf-8")
    assert vlp_data("tsv", "--file", tmp_path / "x.tsv", "--images", images, "--out", out) == 0
    assert saved_report(out)["skipped"] == {"image missing": (1, [names[0]])}
    assert open_index(out).manifest.samples == len(names) - 1
    given = {line.split("\t")[1].strip() for line in lines}
    assert {caption for sample in samples_of(out) for caption in sample.captions} <= given
