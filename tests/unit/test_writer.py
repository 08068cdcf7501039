from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from data_tools.writer import Sealed, ShardFile, ShardWriter, Unwritable, prepare_directory, safe_key
from tests.unit.shard_making import photo, some_regions, write_samples
from vlp.data.build import checksum_of
from vlp.data.index import build_index
from vlp.data.scan import scan_shard
from vlp.errors import DataError


def test_webdataset_reads_what_we_write(tmp_path: Path) -> None:
    from webdataset import WebDataset

    write_samples(tmp_path, samples=3)
    samples = list(WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["s0", "s1", "s2"]
    assert samples[2]["json"]["captions"][0] == "caption 0 of 2 "
    assert (samples[2]["features.npy"] == some_regions(2, 2).features_RD).all()


def test_the_bytes_are_those_of_webdatasets_own_writer(tmp_path: Path) -> None:
    from webdataset.writer import TarWriter

    write_samples(tmp_path, samples=3)
    ours = (tmp_path / "shard-000000.tar").read_bytes()
    theirs = io.BytesIO()
    writer = TarWriter(theirs, user="", group="", mtime=0, encoder=False)
    with tarfile.open(tmp_path / "shard-000000.tar") as archive:
        samples: dict[str, dict[str, bytes]] = {}
        for member in archive:
            key, _, extension = member.name.partition(".")
            file = archive.extractfile(member)
            assert file is not None
            samples.setdefault(key, {})[extension] = file.read()
    for key, members in samples.items():
        writer.write({"__key__": key, **members})
    writer.close()
    assert ours == theirs.getvalue()


def test_a_shard_knows_its_checksum_and_stands_hidden_until_it_is_published(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path / "a.tar")
    shard.write("ảnh-" + "k" * 300, photo(), "jpg", some_regions(2), ["a"])
    sealed = shard.seal()
    assert [path.name for path in tmp_path.iterdir()] == [f".a.tar.{os.getpid()}.partial"]
    shard.publish()
    state = (tmp_path / "a.tar").stat()
    assert sealed == Sealed(state.st_size, state.st_mtime_ns, checksum_of(tmp_path / "a.tar"))
    assert len(scan_shard(tmp_path / "a.tar")) == 1


def test_texts_that_no_reader_takes_are_refused(tmp_path: Path) -> None:
    shard = ShardFile(tmp_path / "a.tar")
    with pytest.raises(Unwritable, match="half a surrogate pair"):
        shard.write("a", None, "", None, ["\ud800"])
    with pytest.raises(Unwritable, match="more than 16 MiB"):
        shard.write("a", None, "", None, ["x" * (16 << 20)])
    shard.write("a", photo(), "jpg", None, ["a"])
    shard.seal()
    shard.publish()
    assert scan_shard(tmp_path / "a.tar").captions_S.tolist() == [1]


def test_members_carry_neither_time_nor_owner(tmp_path: Path) -> None:
    write_samples(tmp_path)
    with tarfile.open(tmp_path / "shard-000000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_no_half_written_shard_stands_under_its_final_name(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def interrupted() -> None:
        with ShardWriter(tmp_path, samples_per_shard=2) as writer:
            for number in range(5):
                assert len(list(tmp_path.glob("*.tar"))) == number // 2
                if number == 3:
                    raise Stop
                writer.write(f"k{number}", photo(), "jpg", None, ["a"])

    with pytest.raises(Stop):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000.tar"]
    build_index(tmp_path)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "a\\b", "__a__", "a\nb"])
def test_keys_that_cannot_be_keys_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path) as writer, pytest.raises(DataError, match="a key has no dot"):
        writer.write(key, photo(), "jpg", None, ["a"])
    assert list(tmp_path.iterdir()) == []


def test_a_key_stands_once_in_a_shard(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write("a", photo(), "jpg", None, ["a"])
        with pytest.raises(DataError, match="stands twice"):
            writer.write("a", photo(), "jpg", None, ["a"])
        with pytest.raises(DataError, match="extension 'gif'"):
            writer.write("b", photo(), "gif", None, ["a"])
    assert writer.samples == 1


def test_file_names_become_keys() -> None:
    assert safe_key("folder/photo.v2") == "folder_photo_v2"
    assert safe_key("ảnh 1") == "ảnh 1"


def test_shards_are_replaced_only_on_demand(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_directory(out, overwrite=False)
    write_samples(out)
    build_index(out)
    (out / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match=r"holds shards already \(shard-000000\.tar, \.\.\.\).*--overwrite"):
        prepare_directory(out, overwrite=False)
    prepare_directory(out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    with pytest.raises(DataError, match="is a file"):
        prepare_directory(out / "mine.txt", overwrite=True)
