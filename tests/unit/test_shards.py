from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.shard_making import photo, region_members, some_arrays, some_regions, texts, write_samples, write_tar
from vlp.data.index import Index, build_index, open_index
from vlp.data.shards import BadSample, ShardReader
from vlp.types import Question, Sample


def _reader(directory: Path, members: list[tuple[str, bytes]], **more: Any) -> ShardReader:
    write_tar(directory / "x.tar", members)
    build_index(directory, **more)
    return ShardReader(open_index(directory))


def _all(reader: ShardReader, shard: int, row: int) -> Sample:
    return reader.read(shard, row, image=True, regions=True, texts=True)


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_samples(tmp_path)
    build_index(tmp_path)
    sample = _all(ShardReader(open_index(tmp_path)), 1, 2)
    assert (sample.key, sample.image) == ("s5", photo(5))
    assert sample.captions == ("caption 0 of 5", "caption 1 of 5 word")
    assert sample.questions == (Question("what is 5?", ("one", "two"), "q5"),)
    assert sample.regions is not None
    wanted = some_regions(1, 5)
    assert sample.regions.features_RD.dtype == np.float16
    for name in ("features_RD", "boxes_R4", "confidence_R", "class_probs_RC"):
        np.testing.assert_array_equal(getattr(sample.regions, name), getattr(wanted, name))


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    write_samples(tmp_path)
    build_index(tmp_path)
    reader = ShardReader(open_index(tmp_path))
    assert reader.read(1, 2, image=False, regions=False, texts=False) == Sample("s5", width=20, height=12)
    assert _all(reader, 1, 0).image is None
    assert _all(reader, 1, 1).regions is None


def test_texts_are_stripped_and_composed(tmp_path: Path) -> None:
    question = {"question": " Mấy con? ", "answers": [" hai "], "question_id": 7}
    members = [("a.jpg", photo()), ("a.json", texts(" một con cho\u0301 \n", questions=[question]))]
    members += [("b.jpg", photo()), ("b.txt", b"\xef\xbb\xbf one caption \n")]
    reader = _reader(tmp_path, members)
    assert _all(reader, 0, 0).captions == ("một con chó",)
    assert _all(reader, 0, 0).questions == (Question("Mấy con?", ("hai",), "7"),)
    assert _all(reader, 0, 1).captions == ("one caption",)


@pytest.mark.parametrize("naming", ["uniter", "ours"])
def test_packed_regions_are_read_in_both_namings(tmp_path: Path, naming: str) -> None:
    regions, stream = some_regions(2), io.BytesIO()
    corners = regions.boxes_R4
    if naming == "uniter":
        seven = np.hstack([corners, corners[:, 2:] - corners[:, :2], np.ones((2, 1), np.float32)])
        np.savez(
            stream,
            features=regions.features_RD,
            norm_bb=seven,
            conf=regions.confidence_R,
            soft_labels=regions.class_probs_RC,
        )
    else:
        np.savez_compressed(stream, features=regions.features_RD, boxes=corners, confidence=regions.confidence_R)
    found = _all(_reader(tmp_path, [("a.regions.npz", stream.getvalue())]), 0, 0).regions
    assert found is not None
    np.testing.assert_array_equal(found.features_RD, regions.features_RD)
    np.testing.assert_array_equal(found.boxes_R4, corners)
    assert (found.class_probs_RC is not None) == (naming == "uniter")


def _with(array: str, value: float, row: int = 1) -> dict[str, Any]:
    changed = np.array(some_arrays(2)[array])
    changed[row, ...] = value
    return {array: changed}


@pytest.mark.parametrize(
    ("changes", "member", "reason"),
    [
        (_with("features", np.nan), "features", "not finite"),
        (_with("features", np.inf), "features", "not finite"),
        ({"features": np.full((2, 6), np.nan, np.float32)}, "features", "not finite"),
        ({"features": np.zeros((2, 6), np.int32)}, "features", "holds int32"),
        (_with("boxes", np.nan), "boxes", "not finite"),
        (_with("boxes", 1.01), "boxes", "outside 0..1"),
        (_with("boxes", -0.01), "boxes", "outside 0..1"),
        ({"boxes": np.array([[0, 0, 1, 1], [0.5, 0.5, 0.2, 0.6]], np.float32)}, "boxes", "x2 < x1"),
        (_with("confidence", np.nan), "confidence", "not finite"),
        (_with("class_probs", -0.5), "class_probs", "negative"),
    ],
)
def test_bad_region_arrays_are_told(tmp_path: Path, changes: dict[str, Any], member: str, reason: str) -> None:
    reader = _reader(tmp_path, [*region_members("a", **changes), ("a.json", texts("c"))])
    with pytest.raises(BadSample, match=reason) as caught:
        _all(reader, 0, 0)
    bad = caught.value
    assert (bad.shard, bad.key, bad.member) == ("x.tar", "a", member)
    assert _all_but_regions(reader) == ("c",)
    again = pickle.loads(pickle.dumps(bad))
    assert (again.reason, str(again)) == (bad.reason, str(bad))


def _all_but_regions(reader: ShardReader) -> tuple[str, ...]:
    return reader.read(0, 0, image=True, regions=False, texts=True).captions


def test_boxes_a_rounding_step_outside_are_clipped(tmp_path: Path) -> None:
    boxes = np.array([[-0.0005, 0, 1.0005, 1], [0, 0, 1, 1]], np.float32)
    regions = _all(_reader(tmp_path, region_members("a", boxes=boxes)), 0, 0).regions
    assert regions is not None
    assert regions.boxes_R4.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("caption", ["", "  \n", "\u3000"])
def test_an_empty_caption_is_told(tmp_path: Path, caption: str) -> None:
    reader = _reader(tmp_path, [("a.jpg", photo()), ("a.json", texts("fine", caption))])
    with pytest.raises(BadSample, match=r"x\.tar: sample 'a': captions has an empty caption \(number 1\)"):
        _all(reader, 0, 0)


def test_a_sample_without_image_and_regions_is_told_unless_text_only(tmp_path: Path) -> None:
    reader = _reader(tmp_path, [("a.json", texts("words"))], text_only=True)
    assert _all(reader, 0, 0).captions == ("words",)
    strict = Index(tmp_path, reader.index.manifest.model_copy(update={"text_only": False}))
    with pytest.raises(BadSample, match="neither an image nor regions"):
        _all(ShardReader(strict), 0, 0)


def test_bytes_that_changed_under_the_index_are_told(tmp_path: Path) -> None:
    reader = _reader(tmp_path, [("a.jpg", photo()), ("a.json", texts("one", "two")), *region_members("a")])
    path = tmp_path / "x.tar"
    whole = path.read_bytes()
    for old, new, reason in (
        (b'["one", "two"]', b'["one",  two"]', "json is not valid JSON"),
        (b'["one", "two"]', b'["one and two"]'[:14].ljust(14), "json is not valid JSON"),
        (b'["one", "two"]', b'["one   two" ]', "another number of texts"),
        (b"(2, 6)", b"(6, 2)", "boxes has 2 rows where features has 6"),
        (b"NUMPY", b"numpy", "is not an .npy array"),
    ):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(BadSample, match=reason):
            _all(ShardReader(reader.index), 0, 0)
    path.write_bytes(whole[: whole.index(b"a.features.npy") + 600])
    with pytest.raises(BadSample, match="truncated"):
        _all(ShardReader(reader.index), 0, 0)
    path.unlink()
    with pytest.raises(BadSample, match="cannot be read: No such file"):
        _all(ShardReader(reader.index), 0, 0)


def test_random_damage_never_does_more_than_a_bad_sample(tmp_path: Path) -> None:
    write_samples(tmp_path, samples=6, per_shard=6)
    build_index(tmp_path)
    index, path = open_index(tmp_path), tmp_path / "shard-000000.tar"
    whole, random, told = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        data = bytearray(whole)
        for place in random.integers(len(data), size=20):
            data[place] ^= 1 << random.integers(8)
        path.write_bytes(data)
        reader = ShardReader(index)
        for row in range(6):
            try:
                _all(reader, 0, row)
            except BadSample:
                told += 1
    assert told > 100


def test_few_files_stay_open_and_a_fork_opens_its_own(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", [("a.jpg", photo(number))])
    build_index(tmp_path)
    manifest = open_index(tmp_path).manifest
    index = Index(tmp_path, manifest.model_copy(update={"shards": manifest.shards * 30}))
    reader = ShardReader(index)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    for shard in range(90):
        assert _all(reader, shard, 0).image == photo(shard % 3)
    assert len(reader._files) == 64
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before + 64
    child = os.fork()
    if child == 0:
        right = _all(reader, 89, 0).image == photo(2) and len(reader._files) == 1
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(reader._files) == 64
    assert _all(pickle.loads(pickle.dumps(reader)), 1, 0).image == photo(1)
    reader.close()
    assert not reader._files
