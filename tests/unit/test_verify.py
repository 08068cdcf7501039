from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.verify.directory import Verdict, check_directory
from data_tools.verify.findings import DAMAGE
from tests.unit.import_running import vlp_data
from tests.unit.shard_making import WIDTH, photo, region_members, texts, write_samples, write_tar
from vlp.data.index import build_index, open_index
from vlp.data.lengths import token_lengths
from vlp.data.manifest import INDEX, MANIFEST
from vlp.data.shards import ShardReader


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_samples(tmp_path / "data", samples=9, per_shard=3)
    build_index(tmp_path / "data", made_by={"command": "test"})
    index = open_index(tmp_path / "data")
    token_lengths(index, lambda lines: [len(line.split()) for line in lines], "words", 9)
    return tmp_path / "data"


def check(directory: Path, workers: int = 1) -> Verdict:
    return check_directory(directory, workers, lambda done, total: None)


def found(directory: Path) -> dict[str, list[str]]:
    """What is damaged, as sentences by kind."""
    findings = check(directory).findings
    return {kind: list(map(str, findings.kept[kind])) for kind in DAMAGE if findings.counts[kind]}


def change(path: Path, old: bytes, new: bytes, count: int = 1) -> None:
    data = path.read_bytes()
    assert data.count(old) >= count
    path.write_bytes(data.replace(old, new, count))


# ------------------------------------------------------------------------------------------------------- finding


def test_whole_data_exit_with_0_indexed_or_not(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vlp_data("verify", data, "--workers", 2) == 0
    assert "3 shards, 9 samples: all is well" in capsys.readouterr().out
    for path in sorted((data / INDEX).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (data / INDEX).rmdir()
    assert vlp_data("verify", data) == 0
    said = capsys.readouterr().out
    assert "all is well" in said
    assert "no index" in said


def test_damage_is_told_by_kind_and_place_and_exits_with_1(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(data / "shard-000000.tar", b"caption 0 of 1", b"caption 0 \xff\xff 1")
    change(data / "shard-000001.tar", photo(4)[-400:-360], bytes(40))
    (data / "shard-000002.tar").unlink()
    report = data.parent / "new" / "report.json"
    assert vlp_data("verify", data, "--report", report, "--workers", 2) == 1
    said = capsys.readouterr().out
    assert "text: shard-000000.tar: sample 's1': json is not UTF-8" in said
    assert "missing: shard-000002.tar: is not there" in said
    assert "checksum: shard-000001.tar: is not what was indexed: changed since" in said
    told = json.loads(report.read_text())
    assert (told["clean"], told["shards"], told["samples"], told["indexed"]) == (False, 2, 6, True)
    assert {kind: entry["count"] for kind, entry in told["findings"].items()}.items() >= {
        "text": 1,
        "missing": 1,
        "checksum": 2,
    }.items()
    first = told["findings"]["text"]["first"][0]
    assert first == {
        "kind": "text",
        "shard": "shard-000000.tar",
        "key": "s1",
        "member": "json",
        "reason": "is not UTF-8",
    }


SAMPLES: dict[str, tuple[list[tuple[str, bytes]], str, str]] = {
    "an image cut off": ([("a.jpg", photo()[:-30]), ("a.txt", b"c")], "image", "sample 'a': jpg does not decode"),
    "no image": ([("a.png", b"words"), ("a.txt", b"c")], "image", "png is not a JPEG, PNG or WebP image"),
    "no JSON": ([("a.jpg", photo()), ("a.json", b"{")], "text", "json is not valid JSON"),
    "a blank caption": ([("a.jpg", photo()), ("a.json", texts("x", " "))], "text", "empty caption (number 1)"),
    "a number that is none": (
        region_members("a", features=np.full((2, WIDTH), np.nan, np.float16)),
        "regions",
        "sample 'a': features has a number that is not finite",
    ),
    "boxes in pixels": (region_members("a", boxes=np.full((2, 4), 200.0, np.float32)), "regions", "outside 0..1"),
    "arrays that do not fit": (region_members("a", confidence=np.zeros(3, np.float32)), "regions", "3 rows where"),
    "a member twice": ([("a.jpg", photo()), ("a.jpg", photo()), ("a.txt", b"c")], "member", "stands twice"),
    "two images": ([("a.jpg", photo()), ("a.png", photo()), ("a.txt", b"c")], "member", "has two images"),
    "dots in keys": ([("a.1.jpg", photo()), ("a.1.txt", b"c")], "member", "has a dot in its key"),
    "a name that climbs out": ([("../a.jpg", photo())], "tar", "points outside the shard"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_each_damaged_member_is_found_without_an_index(name: str, tmp_path: Path) -> None:
    members, kind, sentence = SAMPLES[name]
    good = [("z.jpg", photo(9)), ("z.txt", b"words")]
    write_tar(tmp_path / "x.tar", [*members, *good])
    told = found(tmp_path)
    assert list(told) == [kind]
    assert sentence in told[kind][0]


def test_every_fault_of_a_sample_is_told(tmp_path: Path) -> None:
    a = [("a.jpg", b"no"), ("a.json", b"no"), *region_members("a", boxes=None)]
    write_tar(tmp_path / "x.tar", [*a, ("b.jpg", b"none"), ("b.txt", b"c")])
    assert check(tmp_path).findings.counts == {"image": 2, "text": 1, "regions": 1, "no index": 1}


def test_samples_behind_damage_are_checked_too(data: Path) -> None:
    path = data / "shard-000000.tar"
    whole = path.read_bytes()
    header = whole.index(b"s1.json")
    change(path, b"caption 0 of 2", b"caption 0 \xff\xff 2")
    for damage in (b"\xff", bytes(512)):  # a byte of a header; a header wiped out, which looks like the tar's end
        data_now = bytearray(path.read_bytes())
        data_now[header : header + len(damage)] = damage
        path.write_bytes(data_now)
        told = found(data)
        assert "sample 's2': json is not UTF-8" in told["text"][0]
        assert len(told["tar"]) == 1
    assert "goes on behind the end mark" in told["tar"][0]


def test_widths_that_few_samples_have_are_found(tmp_path: Path) -> None:
    wide = np.zeros((2, WIDTH + 1), np.float16)
    write_tar(tmp_path / "x.tar", [*region_members("a"), *region_members("b"), *region_members("c", features=wide)])
    write_tar(tmp_path / "y.tar", region_members("d", features=wide))
    write_tar(tmp_path / "z.tar", region_members("e", class_probs=None))
    told = found(tmp_path)
    assert list(told) == ["width"]
    assert told["width"][0].startswith(
        "x.tar: sample 'c': is the first of 1 here whose regions are 7 wide with 3 classes"
    )
    assert "y.tar: sample 'd'" in told["width"][1]


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        (MANIFEST, b'"command": "test"', b'"command": "Test"', "its checksum does not fit"),
        (MANIFEST, b'\n "text_only"', b'\n\t"text_only"', "its checksum does not fit"),
        (MANIFEST, b'"samples": 3', b'"samples": 4', "its checksum does not fit"),
        (MANIFEST, b'"version"', b'"Version"', "unknown key 'Version'"),
        ("shard-000001.npz", b"s3\ns4", b"s3\ns5", "is damaged, or says something else"),
        ("shard-000001.npz", b"\x00\x21\x00", b"\x01\x21\x00", "is damaged, or says something else"),
        ("shard-000001.npz", b"version.npy", b"Version.npy", "is damaged, or says something else"),
        ("lengths-words/shard-000001.npz", b"\x00\x21\x00", b"\x01\x21\x00", "is damaged"),
    ],
)
def test_damage_to_the_index_is_found(data: Path, file: str, old: bytes, new: bytes, sentence: str) -> None:
    change(data / INDEX / file, old, new)
    told = found(data)
    assert list(told) == ["lengths" if "lengths" in file else "index"]
    assert sentence in " ".join(told.popitem()[1])


def test_an_index_of_another_state_is_found(data: Path) -> None:
    for name in ("shard-000001", "shard-000002"):
        (data / INDEX / f"{name}.npz").rename(data / INDEX / f"{name}.moved")
    (data / INDEX / "shard-000001.moved").rename(data / INDEX / "shard-000002.npz")
    write_tar(data / "shard-000003.tar", [("a.jpg", photo()), ("a.txt", b"c")])
    told = found(data)
    assert list(told) == ["foreign", "index"]
    assert [line.split(":")[0] for line in told["index"]] == ["shard-000001.npz", "shard-000002.npz"]


def test_lengths_of_another_state_are_found(data: Path) -> None:
    folder = data / INDEX / "lengths-words"
    (folder / "shard-000000.npz").write_bytes((folder / "shard-000001.npz").read_bytes())
    assert "of another state of the shard" in found(data)["lengths"][0]


def test_what_is_no_damage_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", photo()), ("a.txt", b"c"), ("b.jpg", photo(1)), ("c.txt", b"c")])
    write_tar(tmp_path / "y.tar", [("a.png", photo(2)), ("a.txt", b"c"), ("d.jpg", photo()), ("d.txt", b"c")])
    build_index(tmp_path)
    assert vlp_data("verify", tmp_path) == 0
    said = capsys.readouterr().out
    assert "no image: x.tar: sample 'c': has neither an image nor regions" in said
    assert "no text: x.tar: sample 'b': has neither a caption nor a question" in said
    assert "same image: y.tar: sample 'd': has the image of an earlier sample" in said
    assert "same key: y.tar: sample 'a': has the key of an earlier sample" in said


def test_a_text_only_dataset_is_clean(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.txt", b"one"), ("b.txt", b"two")])
    assert check(tmp_path).text_only
    build_index(tmp_path, text_only=True)
    verdict = check(tmp_path)
    assert verdict.text_only
    assert not +verdict.findings.counts


def test_an_index_without_a_checksum_is_taken(data: Path) -> None:
    path = data / INDEX / MANIFEST
    record = json.loads(path.read_text())
    for later in ("checksum", "left_out"):
        del record[later]
    path.write_text(json.dumps(record))
    assert not found(data)
    record["feature_width"] += 1
    path.write_text(json.dumps(record))
    assert "width" in found(data)


@pytest.mark.parametrize(
    "arguments", [["none"], ["data", "--repair", "data"], ["data", "--repair", "data/x"], ["empty"]]
)
def test_wrong_use_exits_with_2(data: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    Path("empty").mkdir()
    assert vlp_data("verify", *arguments) == 2


def test_a_repair_onto_shards_is_wrong_use(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_samples(data.parent / "other")
    before = (data.parent / "other" / "shard-000000.tar").read_bytes()
    assert vlp_data("verify", data, "--repair", data.parent / "other") == 2
    assert "holds shards or an index already" in capsys.readouterr().err
    assert (data.parent / "other" / "shard-000000.tar").read_bytes() == before


# ------------------------------------------------------------------------------------------------------ repairing


def mend(data: Path, code: int = 1) -> tuple[Path, dict[str, Any]]:
    """A repaired copy, checked to be clean, and its report by shard."""
    copy = data.parent / "copy"
    assert vlp_data("verify", data, "--repair", copy, "--workers", 2) == code
    assert vlp_data("verify", copy) == 0
    return copy, {shard["shard"]: shard for shard in json.loads((copy / "repair_report.json").read_text())["shards"]}


def keys(directory: Path) -> list[str]:
    index = open_index(directory)
    return [key for shard in range(len(index.manifest.shards)) for key in index.table(shard).keys]


ALL = [f"s{number}" for number in range(9)]


def test_whole_shards_are_copied_byte_by_byte(data: Path) -> None:
    copy, report = mend(data, code=0)
    assert not report
    for path in data.glob("*.tar"):
        assert (copy / path.name).read_bytes() == path.read_bytes()
    notes = open_index(copy).manifest.made_by
    assert notes["command"] == "test"
    assert notes["repaired"]["dropped"] == 0


def test_bad_samples_are_dropped_and_told(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(data / "shard-000001.tar", b"caption 0 of 4", b"caption 0 \xff\xff 4")
    copy, report = mend(data)
    assert keys(copy) == [key for key in ALL if key != "s4"]
    assert report["shard-000001.tar"]["dropped"] == [{"key": "s4", "reason": "json is not UTF-8"}]
    assert "dropped shard-000001.tar: sample 's4': json is not UTF-8" in capsys.readouterr().out
    for name in ("shard-000000.tar", "shard-000002.tar"):
        assert (copy / name).read_bytes() == (data / name).read_bytes()
    first, second = (ShardReader(open_index(path)) for path in (data, copy))
    assert first.texts(1, 2) == second.texts(1, 1)


def test_the_index_knows_members_whose_headers_are_damaged(data: Path) -> None:
    path = data / "shard-000000.tar"
    change(path, b"s1.json", b"S1.json")
    copy, report = mend(data)
    assert keys(copy) == ALL
    assert not report["shard-000000.tar"]["dropped"]
    assert ShardReader(open_index(copy)).texts(0, 1).captions == ("caption 0 of 1",)


def test_without_an_index_what_stands_next_to_damage_is_dropped_unless_it_is_like_the_rest(tmp_path: Path) -> None:
    data = tmp_path / "data"
    samples = [[(f"{key}.jpg", photo(number)), (f"{key}.txt", b"c")] for number, key in enumerate("abcdef")]
    write_tar(data / "x.tar", [member for sample in samples for member in sample])
    change(data / "x.tar", b"c.txt", b"C.txt")  # c loses its text; d, behind the damage, lost nothing
    copy, report = mend(data)
    assert keys(copy) == ["a", "b", "d", "e", "f"]
    assert report["x.tar"]["dropped"] == [{"key": "c", "reason": "stands next to damage and may have lost a member"}]


def test_a_truncated_shard_keeps_what_is_whole(data: Path) -> None:
    path = data / "shard-000002.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"s8.json") - 100])
    copy, report = mend(data)
    assert keys(copy) == ALL[:8]
    assert [entry["key"] for entry in report["shard-000002.tar"]["dropped"]] == ["s8"]


def test_a_shard_that_changed_is_kept_with_a_doubt(data: Path) -> None:
    path = data / "shard-000000.tar"
    place = path.read_bytes().index(b"s0.json") + 512 + len(b'{"captions": [], "id": 0}') + 20  # padding
    content = bytearray(path.read_bytes())
    assert content[place] == 0
    content[place] = 7
    path.write_bytes(content)
    assert list(found(data)) == ["checksum"]
    copy, report = mend(data)
    assert keys(copy) == ALL
    assert "what changed cannot be told" in report["shard-000000.tar"]["note"]


def test_a_shard_made_anew_is_not_compared_with_its_old_index(data: Path) -> None:
    write_tar(data / "shard-000001.tar", [("new.jpg", photo()), ("new.txt", b"c"), ("bad.jpg", b"no")])
    copy, report = mend(data)
    assert keys(copy) == [*ALL[:3], "new", *ALL[6:]]
    assert [entry["key"] for entry in report["shard-000001.tar"]["dropped"]] == ["bad"]


def test_lost_shards_are_told(data: Path) -> None:
    (data / "shard-000000.tar").unlink()
    (data / "shard-000001.tar").write_bytes(b"no tar at all")
    copy, report = mend(data)
    assert keys(copy) == ALL[6:]
    assert report["shard-000000.tar"]["note"] == "is not there: all is lost"
    assert not (copy / "shard-000001.tar").exists()
    assert len(report["shard-000001.tar"]["dropped"]) == 3


def test_nothing_left_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "data" / "x.tar", [("a.jpg", b"no")])
    assert vlp_data("verify", tmp_path / "data", "--repair", tmp_path / "copy") == 1
    assert "not one sample is good" in capsys.readouterr().err


def test_members_that_vlp_does_not_know_come_along(tmp_path: Path) -> None:
    members = [("a.jpg", photo()), ("a.txt", b"c"), ("a.cls", b"3"), ("b.jpg", b"no"), ("b.cls", b"4")]
    write_tar(tmp_path / "data" / "x.tar", [*members, ("__notes__.json", b"{}")])
    copy, _ = mend(tmp_path / "data")
    with tarfile.open(copy / "x.tar") as archive:
        assert archive.getnames() == ["a.jpg", "a.txt", "a.cls", "__notes__.json"]
