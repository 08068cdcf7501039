"""`vlp-data regions`: shards written again with regions, whole or not at all, and continued where they were left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.regions.maker import Found, Photo
from data_tools.regions.run import RegionRun, add_regions
from data_tools.writer import ShardWriter
from tests.unit.folders import files_of
from tests.unit.import_running import samples_of, saved_report, vlp_data
from tests.unit.region_making import tsv_line, write_tsv
from tests.unit.shard_making import photo, some_regions, write_samples, write_tar
from vlp.data.index import Index, build_index, open_index
from vlp.data.samples import Fault
from vlp.data.shards import ShardReader
from vlp.errors import DataError
from vlp.types import Question


class Stub:
    """A maker of four regions a photo; may stop at a photo, find nothing on one, or find one damaged."""

    wants_image, wants_regions = True, False

    def __init__(self, name: str = "stub", **behaviour: str) -> None:
        self.provenance = {"from": name, "classes": 3}
        self.behaviour = behaviour
        self.seen: list[Photo] = []

    def make(self, photos: Sequence[Photo]) -> list[Found]:
        self.seen += photos
        return [self._found(given) for given in photos]

    def _found(self, given: Photo) -> Found:
        match self.behaviour.get(f"at_{given.id}"):
            case "stop":
                raise KeyboardInterrupt
            case "fault":
                return Fault("image", "does not decode")
            case "none":
                return None
        return some_regions(4, 100 + int(given.id))


def _data(path: Path, samples: int = 7) -> Index:
    with ShardWriter(path, 3) as writer:
        for i in range(samples):
            questions = [Question("what?", ("yes",), f"q{i}")]
            members = {"id": i, "more": {"é": [1]}}
            writer.write(f"k{i}", photo(i), "jpg", some_regions(2, i, 3), [f"caption {i}", "b"], questions, members)
    build_index(path, made_by={"command": "test"})
    return open_index(path)


def test_texts_and_photos_stay_and_regions_are_replaced(tmp_path: Path) -> None:
    index, maker = _data(tmp_path / "data"), Stub()
    add_regions(index, maker, RegionRun(tmp_path / "out"))
    before, after = samples_of(tmp_path / "data"), samples_of(tmp_path / "out")
    assert [entry.name for entry in open_index(tmp_path / "out").manifest.shards] == [
        entry.name for entry in index.manifest.shards
    ]
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        assert (new.key, new.image, new.captions, new.questions) == (old.key, old.image, old.captions, old.questions)
        assert new.regions is not None
        np.testing.assert_array_equal(new.regions.features_RD, some_regions(4, 100 + i).features_RD)
    old_reader, new_reader = ShardReader(index), ShardReader(open_index(tmp_path / "out"))
    for row in range(3):
        old_json, new_json = (r.member(r.index.table(0), 0, row, "json") for r in (old_reader, new_reader))
        assert old_json == new_json  # to the byte, whatever else it holds
    assert [given.image for given in maker.seen] == [photo(i) for i in range(7)]
    assert {given.regions for given in maker.seen} == {None}  # not asked for
    manifest = open_index(tmp_path / "out").manifest
    assert manifest.made_by["regions"] == maker.provenance
    assert manifest.made_by["of"] == {"command": "test"}
    report = saved_report(tmp_path / "out")
    assert report["read"] == {"samples": 7}
    assert report["written"] == {"samples": 7, "captions": 14, "questions": 7, "regions": 28, "shards": 3}


def test_a_killed_run_goes_on_with_the_same_result(tmp_path: Path) -> None:
    index, out = _data(tmp_path / "data"), tmp_path / "out"
    add_regions(index, Stub(), RegionRun(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        add_regions(index, Stub(at_4="stop"), RegionRun(out))
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["shard-000000.tar"]
    kept = (out / "shard-000000.tar").stat()
    second = Stub()
    add_regions(index, second, RegionRun(out))
    assert [given.id for given in second.seen] == ["3", "4", "5", "6"]
    assert (out / "shard-000000.tar").stat().st_ino == kept.st_ino
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_finished_shard_that_changed_is_made_again(tmp_path: Path) -> None:
    index, out = _data(tmp_path / "data"), tmp_path / "out"
    add_regions(index, Stub(), RegionRun(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        add_regions(index, Stub(at_4="stop"), RegionRun(out))
    (out / "shard-000000.tar").write_bytes(b"damaged")
    add_regions(index, Stub(), RegionRun(out))
    assert files_of(out) == files_of(tmp_path / "whole")


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    index, out = _data(tmp_path / "data"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        add_regions(index, Stub(at_4="stop"), RegionRun(out))
    for maker, more in ((Stub("other"), {}), (Stub(), {"half": True}), (Stub(), {"without_images": True})):
        with pytest.raises(DataError, match="unfinished"):
            add_regions(index, maker, RegionRun(out, **more))
    with pytest.raises(DataError, match="unfinished"):
        add_regions(_data(tmp_path / "more", samples=8), Stub(), RegionRun(out))
    add_regions(index, Stub("other"), RegionRun(out, overwrite=True))
    assert open_index(out).manifest.made_by["regions"]["from"] == "other"
    with pytest.raises(DataError, match="holds shards already"):
        add_regions(index, Stub("other"), RegionRun(out))
    with pytest.raises(DataError, match="is the directory that --data names"):
        add_regions(index, Stub(), RegionRun(index.directory, overwrite=True))
    assert len(samples_of(index.directory)) == 7


def test_what_is_damaged_is_left_out_and_what_has_none_is_kept(tmp_path: Path) -> None:
    index, out = _data(tmp_path / "data"), tmp_path / "out"
    add_regions(index, Stub(at_1="fault", at_5="none"), RegionRun(out))
    samples = samples_of(out)
    assert [sample.key for sample in samples] == ["k0", "k2", "k3", "k4", "k5", "k6"]
    assert [sample.regions is None for sample in samples] == [False, False, False, False, True, False]
    report = saved_report(out)
    assert report["skipped"] == {"image does not decode": (1, ["shard-000000.tar/k1"])}
    noted = {entry["reason"]: entry["examples"] for entry in report["notes"]}
    assert noted == {"written without regions: there are none for the image": ["shard-000001.tar/k5"]}
    assert report["written"]["samples"] == 6


def test_without_images_only_samples_with_regions_are_left(tmp_path: Path) -> None:
    index, out = _data(tmp_path / "data"), tmp_path / "out"
    add_regions(index, Stub(at_5="none"), RegionRun(out, without_images=True, half=True))
    samples = samples_of(out)
    assert [sample.key for sample in samples] == ["k0", "k1", "k2", "k3", "k4", "k6"]
    assert {sample.image for sample in samples} == {None}
    assert {sample.regions.features_RD.dtype for sample in samples if sample.regions} == {np.dtype(np.float16)}
    reason = "sample without an image, for which there are no regions"
    assert saved_report(out)["skipped"] == {reason: (1, ["shard-000001.tar/k5"])}


def test_a_shard_of_which_nothing_is_left_is_no_shard(tmp_path: Path) -> None:
    index, out = _data(tmp_path / "data"), tmp_path / "out"
    behaviour = {f"at_{i}": "fault" for i in (3, 4, 5)}
    with pytest.raises(KeyboardInterrupt):
        add_regions(index, Stub(at_6="stop", **behaviour), RegionRun(out))
    add_regions(index, Stub(**behaviour), RegionRun(out))
    assert [entry.name for entry in open_index(out).manifest.shards] == ["shard-000000.tar", "shard-000002.tar"]


def test_no_regions_at_all_is_an_error_that_names_an_id(tmp_path: Path) -> None:
    index = _data(tmp_path / "data")
    with pytest.raises(DataError, match=r"not one sample got regions; the first image id of .*data is '0'"):
        add_regions(index, Stub(**{f"at_{i}": "none" for i in range(7)}), RegionRun(tmp_path / "out"))
    with pytest.raises(DataError, match="nothing is left to write: 7 x image does not decode"):
        add_regions(index, Stub(**{f"at_{i}": "fault" for i in range(7)}), RegionRun(tmp_path / "none"))
    write_tar(tmp_path / "text" / "x.tar", [("a.txt", b"words")])
    build_index(tmp_path / "text", text_only=True)
    with pytest.raises(DataError, match="holds texts alone"):
        add_regions(open_index(tmp_path / "text"), Stub(), RegionRun(tmp_path / "out"))


def test_shards_of_others_keep_their_keys_and_files(tmp_path: Path) -> None:
    members = [("deep/000.jpg", photo(0)), ("deep/000.txt", b"a caption"), ("deep/000.cls", b"7")]
    members += [("deep/001.png", photo(1, kind="PNG")), ("deep/001.json", b'{"caption": "b", "id": 1}')]
    write_tar(tmp_path / "data" / "part-7.tar", members)
    build_index(tmp_path / "data")
    maker = Stub()
    add_regions(open_index(tmp_path / "data"), maker, RegionRun(tmp_path / "out"))
    samples = samples_of(tmp_path / "out")
    assert [(sample.key, sample.captions) for sample in samples] == [("deep/000", ("a caption",)), ("deep/001", ("b",))]
    assert [sample.image for sample in samples] == [photo(0), photo(1, kind="PNG")]
    assert [given.id for given in maker.seen] == ["000", "1"]
    assert open_index(tmp_path / "out").manifest.shards[0].name == "part-7.tar"


def test_a_sample_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    index = _data(tmp_path / "data")
    path = index.path(0)
    table = index.table(0)
    offset, size = (int(column[1]) for column in table.members["json"])
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = b"[" * size
    path.write_bytes(content)
    add_regions(index, Stub(), RegionRun(tmp_path / "out"))
    assert [sample.key for sample in samples_of(tmp_path / "out")] == ["k0", "k2", "k3", "k4", "k5", "k6"]
    assert next(iter(saved_report(tmp_path / "out")["skipped"])).startswith("json is not ")


# ------------------------------------------------------------------------------------------------------ the command


def test_stored_regions_are_merged_by_image_id(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "data", 2) as writer:
        for name, image_id in (("x_a", "a"), ("b_v2", "b.v2"), ("c", 42)):
            writer.write(name, photo(), "jpg", None, ["text"], (), {"id": image_id})
    build_index(tmp_path / "data")
    tsv = write_tsv(tmp_path / "x.tsv", [tsv_line("42", count=2), tsv_line("b.v2", count=3), tsv_line("z")])
    assert vlp_data("regions", "--data", tmp_path / "data", "--out", tmp_path / "tsv", "--tsv", tsv) == 0
    seen = [0 if sample.regions is None else len(sample.regions) for sample in samples_of(tmp_path / "tsv")]
    assert seen == [0, 3, 2]
    manifest = open_index(tmp_path / "tsv").manifest
    assert (manifest.class_ids, manifest.attribute_ids, manifest.feature_width) == (1600, 400, 5)
    folder = tmp_path / "npz"
    folder.mkdir()
    regions = some_regions(6)
    for name in ("a", "b.v2"):
        np.savez(folder / f"{name}.npz", features=regions.features_RD, norm_bb=regions.boxes_R4)
    assert vlp_data("regions", "--data", tmp_path / "tsv", "--out", tmp_path / "both", "--npz", folder) == 0
    seen = [0 if sample.regions is None else len(sample.regions) for sample in samples_of(tmp_path / "both")]
    assert seen == [6, 6, 0]
    vectors = tmp_path / "v.npz"
    np.savez(vectors, image_id=np.array(["a", "b.v2", "42"]), features=np.array([[1.0], [3.0], [9.0]], np.float32))
    (tmp_path / "train.txt").write_text("a.jpg\nb.v2.jpg\n")
    words = ("--out", tmp_path / "vectors", "--npz", vectors, "--standardise", tmp_path / "train.txt")
    assert vlp_data("regions", "--data", tmp_path / "data", *words) == 0
    made = [sample.regions.features_RD.tolist() for sample in samples_of(tmp_path / "vectors") if sample.regions]
    assert made == [[[-1]], [[1]], [[7]]]


def test_a_detector_from_the_command_to_the_page(tmp_path: Path) -> None:
    index = _data(tmp_path / "data", samples=2)
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    words = ("--detector", name, "--untrained", "--size", 64, "--max-boxes", 12, "--threshold", 0, "--device", "cpu")
    assert vlp_data("regions", "--data", index.directory, "--out", tmp_path / "out", *words) == 0
    known = open_index(tmp_path / "out").manifest.made_by["regions"]
    assert (known["detector"], known["untrained"], known["width"], known["classes"]) == (name, True, 1024, 91)
    assert (known["min_boxes"], known["max_boxes"], known["threshold"], known["short_side"]) == (10, 12, 0, 64)
    assert vlp_data("inspect", tmp_path / "out", "--html", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text()
    for sample in samples_of(tmp_path / "out"):
        assert sample.regions is not None
        x1, y1 = sample.regions.boxes_R4[0, :2] * 100  # the most confident is drawn in any case
        assert f'x="{x1:.2f}" y="{y1:.2f}"' in page


def test_a_grid_and_boxes_from_the_command(tmp_path: Path) -> None:
    data = _data(tmp_path / "data", samples=2).directory
    words = ("--backbone", "test_resnet", "--untrained", "--size", 96, "--workers", 1)
    assert vlp_data("regions", "--data", data, "--out", tmp_path / "grid", "--grid", 3, *words) == 0
    assert vlp_data("regions", "--data", data, "--out", tmp_path / "boxes", "--boxes", *words) == 0
    for name, count in (("grid", 9), ("boxes", 2)):
        manifest = open_index(tmp_path / name).manifest
        assert [len(sample.regions or ()) for sample in samples_of(tmp_path / name)] == [count] * 2
        assert manifest.feature_width == manifest.made_by["regions"]["width"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "none is given; give one of --detector, --grid, --boxes, --tsv, --npz"),
        (["--grid", 7, "--boxes"], "--grid and --boxes are given"),
        (["--grid", 7], "--grid: needs --backbone NAME"),
        (["--grid", 7, "--backbone", "resnet18", "--threshold", 0], "--threshold: means nothing with --grid"),
        (["--detector", "x", "--backbone", "resnet18"], "--backbone: means nothing with --detector"),
        (["--npz", "x.npz", "--untrained"], "--untrained: means nothing with --npz"),
        (["--tsv", "x.tsv", "--standardise", "x"], "--standardise: means nothing with --tsv"),
        (["--detector", "x", "--min-boxes", 9, "--max-boxes", 5], "--min-boxes 9 is more than --max-boxes 5"),
        (["--detector", "x", "--untrained", "--weights", "y"], "--weights and --untrained are both given"),
        (["--detector", "x", "--weights", "y"], "--weights y: no such file"),
        (["--tsv", "nowhere.tsv"], "--tsv nowhere.tsv: no such file"),
    ],
)
def test_wrong_use_is_said_in_a_sentence(
    tmp_path: Path, words: list[Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_samples(tmp_path / "data")
    build_index(tmp_path / "data")
    assert vlp_data("regions", "--data", tmp_path / "data", "--out", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_whole_on_real_photos(tmp_path: Path, test_data: Path) -> None:
    coco = test_data / "coco_mini"
    words = ("--captions", coco / "annotations" / "captions_train.json", "--images", coco / "images")
    assert vlp_data("coco", *words, "--out", tmp_path / "data") == 0
    assert vlp_data("coco", *words, "--out", tmp_path / "wanted", "--regions", test_data / "regions" / "coco_mini") == 0
    npz = test_data / "regions" / "coco_mini"
    assert vlp_data("regions", "--data", tmp_path / "data", "--out", tmp_path / "merged", "--npz", npz) == 0
    assert (tmp_path / "merged" / "shard-000000.tar").read_bytes() == (
        tmp_path / "wanted" / "shard-000000.tar"
    ).read_bytes()
