"""What all importers share: workers, splits, limits and sizes, and samples of less than a photo with a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.importing.command import Into, Record, importer
from data_tools.options import Choices, parse_split
from tests.unit.folders import files_of
from tests.unit.import_running import (
    IMAGES,
    import_tsv,
    records_of,
    samples_of,
    saved_report,
    table_of_photos,
    vlp_data,
)
from tests.unit.shard_making import photo, some_regions
from vlp.data.index import open_index
from vlp.errors import ConfigError, DataError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return table_of_photos(tmp_path)


@pytest.mark.parametrize("more", [(), ("--split", "a=0.5,b=0.5", "--drop-duplicates", "--resize", 20, "--limit", 22)])
def test_any_number_of_workers_writes_the_same(source: Path, more: tuple[object, ...]) -> None:
    for workers in (1, 2, 3):
        assert import_tsv(source, source / f"out{workers}", "--workers", workers, *more) == 0
    first = files_of(source / "out1")
    assert len([name for name in first if name.endswith(".tar")]) >= 6
    assert not [name for name in first if ".import" in name or ".partial" in name]
    assert first == files_of(source / "out2") == files_of(source / "out3")


def test_a_shard_is_made_of_its_own_records_whatever_is_skipped(source: Path) -> None:
    assert import_tsv(source, source / "out") == 0
    manifest = open_index(source / "out").manifest
    assert [entry.samples for entry in manifest.shards] == [3, 2, 3, 2, 2, 3, 2, 3]
    assert [sample.key for sample in samples_of(source / "out")][:5] == ["p0", "p1", "p2", "p3", "p5"]
    assert saved_report(source / "out")["skipped"] == {"image missing": (4, ["p4.jpg", "p9.jpg", "p14.jpg", "p19.jpg"])}


def test_a_shard_without_a_sample_is_not_written(source: Path) -> None:
    for number in (3, 5):
        (source / "images" / f"p{number}.jpg").unlink()
    assert import_tsv(source, source / "out") == 0
    names = [entry.name for entry in open_index(source / "out").manifest.shards]
    assert names == [f"shard-{number:06d}.tar" for number in (0, 2, 3, 4, 5, 6, 7)]


def test_what_cannot_be_read_overwrites_nothing(source: Path) -> None:
    out = source / "out"
    assert import_tsv(source, out) == 0
    before = files_of(out)

    def broken() -> Iterator[Record]:
        raise DataError("the source cannot be read")
        yield

    into = Into("x", Choices(out, overwrite=True))
    with pytest.raises(DataError, match="cannot be read"):
        into.write(broken(), images=source / "images", report=into.report())
    assert files_of(out) == before


# ------------------------------------------------------------------------------------------------------ options


def test_a_split_is_by_the_image_alone(source: Path) -> None:
    out = source / "out"
    assert import_tsv(source, out, "--split", "train=0.7,val=0.3") == 0
    keys = {part: {sample.key for sample in samples_of(out / part)} for part in ("train", "val")}
    assert keys["train"] | keys["val"] == {f"p{number}" for number in range(IMAGES) if number % 5 != 4}
    assert not keys["train"] & keys["val"]
    assert keys["val"]
    report = saved_report(out)
    assert report["source"]["split"] == {"train": 0.7, "val": 0.3}
    assert report["written"]["samples"] == 20
    assert {part: counts["samples"] for part, counts in report["parts"].items()} == {
        part: len(found) for part, found in keys.items()
    }
    # The same images with other captions, in another order and with other shards go to the same parts.
    lines = (source / "x.tsv").read_text().splitlines()[::-2]
    (source / "x.tsv").write_text("\n".join(lines))
    assert import_tsv(source, source / "again", "--split", "train=0.7,val=0.3", "--samples-per-shard", 50) == 0
    assert {sample.key for sample in samples_of(source / "again" / "val")} == keys["val"]


def test_an_import_in_place_of_a_split_one_leaves_none_of_its_parts(source: Path) -> None:
    out = source / "out"
    assert import_tsv(source, out, "--split", "a=0.5,b=0.5") == 0
    assert import_tsv(source, out, "--split", "a=0.5,b=0.5") == 1
    assert import_tsv(source, out, "--overwrite") == 0
    assert not list(out.glob("*/*.tar"))
    assert not list(out.glob("*/index"))


def test_a_part_may_get_nothing(source: Path) -> None:
    out = source / "out"
    assert import_tsv(source, out, "--split", "a=0.999999,b=0.000001") == 0
    assert saved_report(out)["parts"]["b"] == {}
    assert not list((out / "b").glob("*.tar"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train", "'train' is not NAME=SHARE"),
        ("train=x", "'train=x' is not NAME=SHARE"),
        ("train=0.5,val=nan", "'val=nan' is not NAME=SHARE"),
        ("train=1.5", "'train=1.5' is not NAME=SHARE"),
        ("train=0.5,val=0.4", "add up to 0.9"),
        ("../x=1", "'../x' cannot name a folder"),
        ("index=1", "'index' cannot name a folder"),
        ("=1", "'' cannot name a folder"),
        ("a=0.5,a=0.5", "stands twice"),
    ],
)
def test_a_split_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="--split") as said:
        parse_split(text)
    assert reason in str(said.value)


def test_later_copies_of_an_image_are_dropped(source: Path) -> None:
    assert import_tsv(source, source / "out", "--drop-duplicates") == 0
    keys = [sample.key for sample in samples_of(source / "out")]
    assert "p7" in keys
    assert "p20" not in keys
    skipped = saved_report(source / "out")["skipped"]
    assert skipped["image file with the same bytes as an earlier one"] == (1, ["p20.jpg"])
    assert skipped["image missing"][0] == 4


def test_images_are_dropped_by_their_sides(source: Path) -> None:
    assert import_tsv(source, source / "out", "--min-side", 31) == 1
    out = source / "wide"
    (source / "images" / "p0.jpg").write_bytes(photo(0, (300, 31)))
    assert import_tsv(source, out, "--max-aspect", 1.5, "--min-side", 30, "--overwrite") == 0
    assert {sample.key for sample in samples_of(out)} == {
        f"p{number}" for number in (1, 3, 5, 7, 11, 13, 15, 17, 20, 21, 23)
    }
    skipped = saved_report(out)["skipped"]
    assert skipped["aspect above --max-aspect 1.5"][1][:2] == ["p0.jpg", "p2.jpg"]


def test_a_limit_takes_the_first_images(source: Path) -> None:
    assert import_tsv(source, source / "out", "--limit", 5) == 0
    assert [sample.key for sample in samples_of(source / "out")] == ["p0", "p1", "p2", "p3"]


def test_resized_images_say_their_own_size_and_keep_their_boxes(source: Path) -> None:
    regions = some_regions(3)
    (source / "regions").mkdir()
    np.savez(source / "regions" / "p1.npz", features=regions.features_RD, boxes=regions.boxes_R4)
    assert import_tsv(source, source / "out", "--resize", 20, "--regions", source / "regions") == 0
    table, records = open_index(source / "out").table(0), records_of(source / "out")
    assert (table.width_S.tolist(), table.height_S.tolist()) == ([20, 27, 20], [33, 20, 33])
    assert (records[1]["width"], records[1]["height"]) == (27, 20)
    sample = samples_of(source / "out")[1]
    assert sample.regions is not None
    np.testing.assert_array_equal(sample.regions.boxes_R4, regions.boxes_R4)
    assert saved_report(source / "out")["written"]["images resized"] == 20


# -------------------------------------------------------------------------------------------- samples of less


def test_regions_without_photos(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "regions").mkdir()
    for number in (1, 4):
        regions = some_regions(number)
        np.savez(source / "regions" / f"p{number}.npz", features=regions.features_RD, boxes=regions.boxes_R4)
    words = ("tsv", "--file", source / "x.tsv", "--out", source / "out")
    assert vlp_data(*words) == 2
    assert "vlp-data: --images: is missing" in capsys.readouterr().err
    assert vlp_data(*words, "--regions", source / "regions", "--min-side", 9) == 2
    assert "vlp-data: --min-side: there are no images to look at; give --images too" in capsys.readouterr().err
    assert vlp_data(*words, "--regions", source / "regions") == 0
    found = samples_of(source / "out")
    assert [(sample.key, sample.image, len(sample.regions or ())) for sample in found] == [
        ("p1", None, 1),
        ("p4", None, 4),
    ]
    assert "width" not in records_of(source / "out")[0]
    assert saved_report(source / "out")["skipped"]["image without regions"][0] == IMAGES - 2
    made_by = open_index(source / "out").manifest.made_by
    assert made_by["regions"] == {"from": "npz", "source": "regions"}


def test_regions_that_stand_for_two_images_are_refused(source: Path) -> None:
    for folder in ("a", "b"):
        (source / "images" / folder).mkdir()
        (source / "images" / folder / "1.jpg").write_bytes(photo(len(folder)))
    (source / "regions").mkdir()
    np.savez(source / "regions" / "1.npz", features=some_regions(2).features_RD, boxes=some_regions(2).boxes_R4)
    (source / "x.tsv").write_text("a/1.jpg\ta\nb/1.jpg\tb\np1.jpg\tc")
    for workers in (1, 2):
        out = source / f"out{workers}"
        more = ("--samples-per-shard", 1, "--workers", workers, "--regions", source / "regions")
        assert import_tsv(source, out, *more) == 0
        reason = "regions that stand for two images: sort the files into folders as the images"
        assert saved_report(out)["skipped"] == {reason: (1, ["b/1.jpg"])}
        assert [sample.key for sample in samples_of(out)] == ["a_1", "p1"]


def test_texts_that_no_reader_takes_are_left_out(source: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "p0.jpg", "caption": ["good", "half \ud800 a pair", " "]},
        {"image": "p1.jpg", "caption": "x" * (17 << 20)},
        {
            "image": "p2.jpg",
            "caption": "c",
            "q": [{"question": "", "question_id": 7}, {"question": "?", "answers": ["\udc00"]}],
        },
        {"image": "p\udc00.jpg", "caption": "c"},
    ]
    lines = [json.dumps(row) for row in rows]
    lines[1] = lines[1].replace("x" * (17 << 20), "x" * (9 << 20))
    lines.append(lines[1])
    (source / "x.jsonl").write_text("\n".join(lines))
    words = (
        "jsonl",
        "--file",
        source / "x.jsonl",
        "--images",
        source / "images",
        "--caption",
        "caption",
        "--question",
        "q",
    )
    assert vlp_data(*words, "--out", source / "out") == 0
    assert [sample.captions for sample in samples_of(source / "out")] == [("good",)]
    assert saved_report(source / "out")["skipped"] == {
        "undecodable caption": (1, ["p0.jpg"]),
        "empty caption": (1, ["p0.jpg"]),
        "empty question": (1, ["p2.jpg (7)"]),
        "image name that is not UTF-8": (1, ["p\\udc00.jpg"]),
        "more than 16 MiB of texts for one image": (1, ["p1.jpg"]),
        "text with half a surrogate pair, which is no character": (1, ["p2.jpg"]),
    }


# ---------------------------------------------------------------------------------------------------- decorator


def test_a_command_shows_the_shared_options_and_its_own_in_their_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert vlp_data("coco", "--help") == 0
    said = capsys.readouterr().out
    for option in ("--captions", "--images", "--out", "--regions", "--split", "--resize", "--workers", "--overwrite"):
        assert said.count(f"  {option} ") == 1, option
    assert "--into" not in said

    assert vlp_data("text", "--help") == 0
    said = capsys.readouterr().out
    assert "--workers" in said
    assert not any(option in said for option in ("--regions", "--resize", "--quality", "--min-side", "--drop"))


def test_the_report_tells_what_was_chosen(tmp_path: Path) -> None:
    taken: list[Into] = []

    @importer
    def some_thing(file: Path, into: Into, split: str = "train") -> None:
        """Help."""
        taken.append(into)

    some_thing(file=tmp_path, split="dev", out=tmp_path, resize=9, workers=3, regions=tmp_path / "r")
    (into,) = taken
    assert into == Into("some-thing", Choices(tmp_path, tmp_path / "r", resize=9, workers=3))
    report = into.report(file=[tmp_path / "a", tmp_path / "b"], split="dev", nothing=None, number=5)
    told = {"file": f"{tmp_path}/a {tmp_path}/b", "split": "dev", "nothing": "", "number": "5"}
    assert report.source == {"command": "some-thing", **told, "regions": str(tmp_path / "r"), "resize": 9}
    assert report.inputs == [tmp_path / "a", tmp_path / "b", tmp_path / "r"]
