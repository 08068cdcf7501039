"""Shards that img2dataset made are indexed and read as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from webdataset.writer import TarWriter

from tests.unit.import_running import vlp_data
from tests.unit.shard_making import photo
from vlp.data.index import build_index, open_index
from vlp.data.shards import ShardReader
from vlp.errors import DataError


def _write(folder: Path, shard: int, failed: set[int], caption_file: bool = True) -> None:
    """Ten samples as img2dataset writes them; of those that failed it leaves nothing, others leave their texts."""
    folder.mkdir(exist_ok=True)
    with TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
        for number in range(10):
            caption = f"caption {number} \u00e9" if number != 3 else None
            about: dict[str, Any] = {
                "caption": caption,
                "url": f"https://example.org/{number}.jpg",
                "key": f"{shard:05d}{number:04d}",
                "status": "failed_to_download" if number in failed else "success",
                "error_message": "HTTP Error 404: Not Found" if number in failed else None,
                "width": None if number in failed else 20,
                "height": None if number in failed else 12,
                "original_width": 40,
                "original_height": 24,
                "exif": "{}",
                "sha256": "0" * 64,
            }
            sample: dict[str, Any] = {"__key__": about["key"], "json": json.dumps(about, indent=4)}
            if caption_file:
                sample["txt"] = caption or "no words"
            if number not in failed:
                sample["jpg"] = photo(number)
            tar.write(sample)
    (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    (folder / f"{shard:05d}_stats.json").write_text("{}")


def _captions(folder: Path) -> dict[str, tuple[str, ...]]:
    reader = ShardReader(open_index(folder))
    found = {}
    for shard, entry in enumerate(reader.index.manifest.shards):
        for row in range(entry.samples):
            sample = reader.read(shard, row, image=True, regions=True, texts=True)
            assert sample.image == photo(int(sample.key[-1]))
            found[sample.key] = sample.captions
    return found


def test_shards_of_img2dataset_are_read_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "data", 0, set())
    _write(tmp_path / "data", 1, set(), caption_file=False)
    assert vlp_data("index", tmp_path / "data") == 0
    said = capsys.readouterr().out
    assert "2 shards, 20 samples, 19 captions" in said
    assert "left out" not in said
    captions = _captions(tmp_path / "data")
    assert captions["000000002"] == ("caption 2 é",)
    assert (captions["000000003"], captions["000010003"]) == (("no words",), ())
    table = open_index(tmp_path / "data").table(1)
    assert (set(table.width_S.tolist()), set(table.height_S.tolist())) == ({20}, {12})


def test_samples_without_their_image_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "data", 0, {1, 7})
    _write(tmp_path / "data", 1, set(range(10)))
    assert vlp_data("index", tmp_path / "data") == 0
    said = capsys.readouterr().out
    assert "2 shards, 8 samples, 8 captions" in said
    assert "left out 12 samples that have neither an image nor regions" in said
    assert sorted(_captions(tmp_path / "data")) == [f"00000000{number}" for number in (0, 2, 3, 4, 5, 6, 8, 9)]
    assert open_index(tmp_path / "data").manifest.left_out == 12


def test_where_no_download_succeeded_the_user_is_told(tmp_path: Path) -> None:
    _write(tmp_path / "data", 0, set(range(10)))
    with pytest.raises(DataError, match="none of its 10 samples has an image or regions"):
        build_index(tmp_path / "data")
