from __future__ import annotations

import io
import json
import os
import tarfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.pool import mapped
from tests.unit.folders import files_of
from tests.unit.shard_making import CLASSES, WIDTH, photo, region_members, texts, write_samples, write_tar
from vlp.data.arrays import ArrayFault, npy_bytes, read_npy, read_npz, write_npz
from vlp.data.index import Index, build_index, examples_per_shard, open_block, open_index
from vlp.data.lengths import token_lengths
from vlp.data.manifest import INDEX, MANIFEST
from vlp.errors import ConfigError, DataError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_samples(tmp_path / "data")
    build_index(tmp_path / "data")
    return tmp_path / "data"


def test_the_manifest_counts_what_the_shards_hold(shards: Path) -> None:
    manifest = open_index(shards).manifest
    assert [entry.name for entry in manifest.shards] == [f"shard-00000{i}.tar" for i in range(3)]
    assert [entry.samples for entry in manifest.shards] == [3, 3, 1]
    assert [entry.captions for entry in manifest.shards] == [0 + 1 + 2, 0 + 1 + 2, 0]
    assert [entry.questions for entry in manifest.shards] == [1, 2, 0]
    assert (manifest.feature_width, manifest.class_count, manifest.text_only) == (WIDTH, CLASSES, False)
    assert examples_per_shard(manifest, "captions").tolist() == [3, 3, 0]
    assert examples_per_shard(manifest, "questions").tolist() == [1, 2, 0]
    assert examples_per_shard(manifest, "both").tolist() == [4, 5, 0]


def test_a_table_says_where_members_lie(shards: Path) -> None:
    index = open_index(shards)
    table = index.table(1)
    assert table.keys == ("s3", "s4", "s5")
    assert table.captions_S.tolist() == [0, 1, 2]
    assert table.questions_S.tolist() == [1, 0, 1]
    assert table.regions_S.tolist() == [3, 0, 1]
    assert table.has_image_S.tolist() == [False, True, True]
    assert (table.width_S.tolist(), table.height_S.tolist()) == ([0, 20, 20], [0, 12, 12])
    offset_S, size_S = table.members["jpg"]
    assert size_S[0] == -1
    assert index.path(1).read_bytes()[offset_S[1] :][: size_S[1]] == photo(4)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_samples(tmp_path / name)
        each = partial(mapped, workers=1 if name == "one" else 2, watch=lambda _: None)
        build_index(tmp_path / name, each=each)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_only_changed_shards_are_read_again(shards: Path) -> None:
    stamps = {path.name: path.stat().st_ino for path in (shards / INDEX).glob("*.npz")}
    before = open_index(shards).manifest
    lengths = token_lengths(open_index(shards), lambda lines: [1] * len(lines), "t", 9)
    assert lengths.table(1)[0].tolist() == [1, 1, 1]
    write_tar(shards / "shard-000001.tar", [("new.jpg", photo()), ("new.json", texts("a", "b"))])
    manifest = build_index(shards)
    now = {path.name: path.stat().st_ino for path in (shards / INDEX).glob("*.npz")}
    assert {name for name in now if now[name] != stamps[name]} == {"shard-000001.npz"}
    assert manifest.fingerprint != before.fingerprint
    assert manifest.shards[1].captions == 2
    # The side file of the shard that changed goes with it.
    assert token_lengths(open_index(shards), lambda lines: [5] * len(lines), "t", 9).table(1)[0].tolist() == [5, 5]


def test_a_shard_changed_within_its_size_is_noticed(shards: Path) -> None:
    path = shards / "shard-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"caption 0 of 1", b"Caption 0 of 1"))
    os.utime(path, ns=(0, 1))  # older than the index, as a restored copy would be
    checksum = open_index(shards).manifest.shards[0].checksum
    assert build_index(shards).shards[0].checksum != checksum


def test_a_copy_with_new_time_stamps_keeps_its_index(shards: Path) -> None:
    before = open_index(shards).manifest
    for path in shards.glob("*.tar"):
        os.utime(path, ns=(5, 5))
    assert build_index(shards) == before


def test_removed_shards_leave_the_index_and_notes_stay(shards: Path) -> None:
    build_index(shards, made_by={"command": "x"})
    (shards / "shard-000002.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000002\.tar: the index names this shard.*vlp-data index"):
        open_index(shards)
    assert build_index(shards).made_by == {"command": "x"}
    assert not (shards / INDEX / "shard-000002.npz").exists()


def test_directories_without_shards_or_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        open_index(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no \*\.tar"):
        open_index(tmp_path)
    with pytest.raises(DataError, match=r"holds no \*\.tar"):
        build_index(tmp_path)
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(DataError, match="unpack"):
        build_index(tmp_path)
    write_samples(tmp_path)
    with pytest.raises(DataError, match=r"has shards but no index; make it with `vlp-data index "):
        open_index(tmp_path)


def test_shards_that_changed_since_are_refused(shards: Path) -> None:
    path = shards / "shard-000001.tar"
    with path.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"shard-000001\.tar: has \d+ bytes where the index says .*vlp-data index"):
        open_index(shards)
    build_index(shards)
    write_tar(shards / "zz.tar", [("k.jpg", photo())])
    with pytest.raises(DataError, match=r"zz\.tar: the shard is not in the index"):
        open_index(shards)


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 4096, -10240, -9000])
def test_a_truncated_tar_is_refused_by_name(shards: Path, keep: int) -> None:
    path = shards / "shard-000000.tar"
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512  # of the last member
    path.write_bytes(data[:keep] if keep >= 0 else data[: end + 9000 + keep])
    with pytest.raises(DataError, match=r"shard-000000\.tar: the shard .*truncated"):
        build_index(shards)


def test_a_damaged_header_is_not_taken_for_the_end(shards: Path) -> None:
    path = shards / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b"s1.json")
    data[place + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"damaged header at byte {place}"):
        build_index(shards)


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "a\\x.jpg", "a\nb.jpg"])
def test_members_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "bad.tar", [(name, photo())])
    with pytest.raises(DataError, match=r"bad\.tar: the shard has a member named .*outside"):
        build_index(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        info = tarfile.TarInfo("x.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match="links and devices are refused"):
        build_index(tmp_path)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_format_are_read(tmp_path: Path, layout: int) -> None:
    name = "./" + "folder/" * 20 + "ảnh"
    with tarfile.open(tmp_path / "x.tar", "w", format=layout) as archive:
        for extension, data in (("jpg", photo()), ("txt", b"a caption")):
            info = tarfile.TarInfo(f"{name}.{extension}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    build_index(tmp_path)
    assert open_index(tmp_path).table(0).keys == (name[2:],)


def test_shards_of_others_are_read_as_they_are(tmp_path: Path) -> None:
    # As img2dataset writes them, with members that we do not know.
    note = json.dumps(
        {"caption": "from the JSON", "url": "x", "width": 9, "height": None, "status": "success"}
    ).encode()
    members = [
        ("0.JPG", photo()),
        ("0.json", note),
        ("0.txt", b"from the text\n"),
        ("0.cls", b"1"),
        ("0.mask.png", b""),
    ]
    members += [("1.jpg", photo()), ("1.json", note), ("__notes__.json", b"{}"), (".DS_Store", b""), ("README", b"")]
    write_tar(tmp_path / "x.tar", members)
    build_index(tmp_path)
    table = open_index(tmp_path).table(0)
    assert table.keys == ("0", "1")
    assert table.captions_S.tolist() == [1, 1]
    assert set(table.members) == {"jpg", "json", "txt"}


def test_keys_with_dots_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("x.y.jpg", photo()), ("x.z.jpg", photo())])
    with pytest.raises(DataError, match=r"member 'x\.y\.jpg' has a dot in its key"):
        build_index(tmp_path)
    write_tar(tmp_path / "x.tar", [("x.jpg", photo()), ("x.y.jpg", photo()), ("x.y.json", texts("a"))])
    with pytest.raises(DataError, match=r"member 'x\.y\.jpg' has a dot in its key"):
        build_index(tmp_path)


def test_members_that_stand_twice_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("x.jpg", photo()), ("x.jpg", photo())])
    with pytest.raises(DataError, match=r"'x\.jpg' stands twice"):
        build_index(tmp_path)
    write_tar(tmp_path / "x.tar", [("x.jpg", photo()), ("x.png", photo())])
    with pytest.raises(DataError, match="two images"):
        build_index(tmp_path)


def test_samples_without_image_and_regions_are_left_out_unless_text_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", photo()), ("a.json", texts("a")), ("b.json", texts("b", "c"))])
    write_tar(tmp_path / "y.tar", [("c.json", texts("d"))])
    for _ in range(2):  # also where the shards were indexed the other way before
        manifest = build_index(tmp_path)
        assert [(entry.samples, entry.captions) for entry in manifest.shards] == [(1, 1), (0, 0)]
        assert (manifest.left_out, open_index(tmp_path).table(0).keys) == (2, ("a",))
        assert build_index(tmp_path).fingerprint == manifest.fingerprint  # from the index files
        both = build_index(tmp_path, text_only=True)
        assert [entry.captions for entry in both.shards] == [3, 1]
        assert (both.left_out, open_index(tmp_path).table(0).keys) == (0, ("a", "b"))


def test_a_dataset_without_any_image_or_regions_needs_text_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.json", texts("a")), ("b.json", texts("b"))])
    with pytest.raises(DataError, match=r"none of its 2 samples has an image or regions;.*--text-only"):
        build_index(tmp_path)


def test_mixed_widths_are_refused(tmp_path: Path) -> None:
    wide = np.zeros((2, WIDTH + 1), np.float16)
    write_tar(tmp_path / "x.tar", [*region_members("a"), *region_members("b", features=wide)])
    with pytest.raises(DataError, match=r"x\.tar: region features are 6 wide in sample 'a' but 7 wide in 'b'"):
        build_index(tmp_path)
    write_tar(tmp_path / "x.tar", region_members("a"))
    write_tar(tmp_path / "y.tar", region_members("b", features=wide))
    with pytest.raises(DataError, match=r"6 wide in x\.tar but 7 wide in y\.tar"):
        build_index(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"features": np.zeros((2, 3, 4), np.float32)}, r"features has shape \[2, 3, 4\], not \[R, D\]"),
        ({"boxes": np.zeros((2, 3), np.float32)}, r"boxes has shape \[2, 3\], not \[R, 4\]"),
        ({"boxes": np.zeros((3, 4), np.float32)}, "boxes has 3 rows where features has 2"),
        ({"confidence": np.zeros((2, 1), np.float32)}, r"confidence has shape \[2, 1\], not \[R\]"),
        ({"features": None}, "features is missing"),
        ({"boxes": None}, "boxes is missing"),
    ],
)
def test_region_arrays_of_wrong_shapes_are_refused(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    write_tar(tmp_path / "x.tar", region_members("a", **changes))
    with pytest.raises(DataError, match=rf"x\.tar: sample 'a': {sentence}"):
        build_index(tmp_path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    pickled = stream.getvalue()
    with pytest.raises(ArrayFault, match="pickled"):
        read_npy(pickled)
    write_tar(tmp_path / "x.tar", [("a.features.npy", pickled)])
    with pytest.raises(DataError, match=r"sample 'a': features\.npy holds pickled Python objects"):
        build_index(tmp_path)
    packed = io.BytesIO()
    np.savez(packed, features=np.array([{"a": 1}], object))
    write_tar(tmp_path / "x.tar", [("a.regions.npz", packed.getvalue())])
    with pytest.raises(DataError, match=r"sample 'a': regions\.npz 'features' holds pickled"):
        build_index(tmp_path)


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"captions": "one"}', b'{"captions": [1]}', b"\xff", b"[" * 100000])
def test_json_that_breaks_the_schema_is_refused(tmp_path: Path, data: bytes) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", photo()), ("a.json", data)])
    with pytest.raises(DataError, match=r"x\.tar: sample 'a': json "):
        build_index(tmp_path)


def test_an_image_without_a_readable_header_is_left_to_the_loader(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", b"no image"), ("b.jpg", photo())])
    build_index(tmp_path)
    assert open_index(tmp_path).table(0).width_S.tolist() == [0, 20]


def test_damaged_index_files_are_refused_or_harmless(shards: Path) -> None:
    random = np.random.default_rng(0)
    for path in [shards / INDEX / "shard-000001.npz", shards / INDEX / MANIFEST]:
        whole = path.read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            if random.random() < 0.5:
                data[random.integers(len(data))] ^= 1 << random.integers(8)
            else:
                del data[random.integers(len(data)) :]
            path.write_bytes(data)
            with suppress(DataError):  # anything else that it raises fails the test
                open_index(shards).table(1)
        path.write_bytes(whole)
    assert open_index(shards).table(1)


def test_an_index_file_is_built_again_if_it_is_damaged(shards: Path) -> None:
    path = shards / INDEX / "shard-000001.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"shard-000001\.npz: the shard's index cannot be used"):
        open_index(shards).table(1)
    build_index(shards)
    assert path.read_bytes() == whole


def test_a_manifest_that_names_files_elsewhere_is_refused(shards: Path) -> None:
    path = shards / INDEX / MANIFEST
    path.write_text(path.read_text().replace("shard-000000.tar", "../secret.tar"))
    with pytest.raises(DataError, match="not a plain"):
        open_index(shards)


def test_few_tables_stay_open(shards: Path) -> None:
    manifest = open_index(shards).manifest
    many = manifest.model_copy(update={"shards": manifest.shards * 20})
    index = Index(shards, many)
    for shard in range(len(many.shards)):
        index.table(shard)
    assert len(index._tables) == 16


@given(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=4), st.sampled_from(["captions", "questions", "both"]))
def test_a_block_lists_every_example_of_its_shards(tmp_path_factory: pytest.TempPathFactory, chosen, texts) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path_factory.getbasetemp() / "block"
    if not (directory / INDEX).exists():
        write_samples(directory, samples=8)
        build_index(directory)
    index = open_index(directory)
    lengths = token_lengths(index, lambda lines: [len(line.split()) for line in lines], "words", limit=5)
    block = open_block(index, chosen, texts, lengths)
    wanted = []
    for place, (shard, row) in enumerate((s, r) for s in chosen for r in range(len(index.table(s)))):
        number = int(index.table(shard).keys[row][1:])
        assert (block.shard_S[place], block.row_S[place], block.regions_S[place]) == (shard, row, number % 4)
        words = [4 + n for n in range(number % 3)] if texts != "questions" else []
        words += [3] * (number % 2) if texts != "captions" else []
        wanted += [(place, text, min(5, count)) for text, count in enumerate(words)]
    found = zip(block.sample_E.tolist(), block.text_E.tolist(), block.tokens_E.tolist(), strict=True)
    assert list(found) == wanted
    assert len(wanted) == examples_per_shard(index.manifest, texts)[chosen].sum()


@given(st.sampled_from(["f2", "<f4", ">f4", "i8", "u1", "?", "U3"]), st.lists(st.integers(0, 4), max_size=3))
def test_arrays_come_back_from_their_bytes(kind: str, shape: list[int]) -> None:
    array = np.arange(int(np.prod(shape))).astype(kind).reshape(shape)
    for layout in (array, np.asfortranarray(array)):
        back = read_npy(npy_bytes(layout))
        assert back.dtype == layout.dtype
        assert back.tolist() == layout.tolist()


def test_an_array_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    data = npy_bytes(np.zeros((3, 4)))
    with pytest.raises(ArrayFault, match="bytes of numbers"):
        read_npy(data[:-1])
    huge = data.replace(b"(3, 4), }      ", b"(300000000, 4)}")
    with pytest.raises(ArrayFault, match="bytes of numbers"):
        read_npy(huge)
    write_npz(tmp_path / "a.npz", {"x": np.zeros(3), "y": np.ones(2)})
    assert read_npz(tmp_path / "a.npz", {"y"}).keys() == {"y"}
    with pytest.raises(ArrayFault, match="not a whole"):
        read_npz((tmp_path / "a.npz").read_bytes()[:-9])
