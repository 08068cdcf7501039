from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.importing.images import ImageRules, content_hash, load_image
from data_tools.importing.record import Skip
from tests.unit.shard_making import photo


def _file(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "x").write_bytes(data)
    return tmp_path / "x"


def _saved(image: Image.Image, kind: str, **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def _smooth(width: int, height: int) -> Image.Image:
    """Red grows to the right, green to the bottom: a picture that JPEG keeps, and whose turns show."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def test_bytes_are_kept_where_nothing_is_to_be_done(tmp_path: Path) -> None:
    data = photo(1, (40, 30))
    for rules in (ImageRules(), ImageRules(resize=30), ImageRules(resize=300, min_side=30, max_aspect=1.34)):
        stored = load_image(_file(tmp_path, data), rules)
        assert (stored.data, stored.extension, stored.width, stored.height) == (data, "jpg", 40, 30)
        assert not stored.resized


@pytest.mark.parametrize(
    ("size", "made"), [((400, 300), (67, 50)), ((300, 400), (50, 67)), ((51, 51), (50, 50)), ((3000, 51), (2941, 50))]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_short_side_is_shrunk(tmp_path: Path, size: tuple[int, int], made: tuple[int, int], kind: str) -> None:
    picture = _smooth(*size)
    stored = load_image(_file(tmp_path, _saved(picture, kind)), ImageRules(resize=50, quality=95))
    assert (stored.width, stored.height) == made
    assert (stored.extension, stored.resized) == ("jpg", True)
    shown = Image.open(io.BytesIO(stored.data))
    assert (shown.format, shown.mode, shown.size) == ("JPEG", "RGB", made)
    wanted = np.asarray(picture.resize(made, Image.Resampling.LANCZOS), np.float32)
    assert np.abs(np.asarray(shown, np.float32) - wanted).mean() < 2.5


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_resized_photo_is_upright(tmp_path: Path, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = _saved(_smooth(80, 60), "JPEG", exif=exif, comment=b"c" * 1000)
    kept = load_image(_file(tmp_path, data), ImageRules())
    small = load_image(_file(tmp_path, data), ImageRules(resize=30))
    assert kept.data == data
    assert (kept.width, kept.height) == ((80, 60) if turn < 5 else (60, 80))
    assert (small.width, small.height) == ((40, 30) if turn < 5 else (30, 40))
    shown = Image.open(io.BytesIO(small.data))
    assert 0x0112 not in shown.getexif()
    assert b"cccc" not in small.data
    # Where the picture's dark corner (no red, no green) belongs, by the standard.
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[turn]
    assert np.asarray(shown)[corner].max() < 40


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    stored = load_image(
        _file(tmp_path, _saved(Image.new("RGBA", (60, 60), (9, 9, 9, 0)), "PNG")), ImageRules(resize=20)
    )
    assert np.asarray(Image.open(io.BytesIO(stored.data))).min() > 250


def test_quality_is_heard(tmp_path: Path) -> None:
    data = photo(1, (200, 200))
    small, large = (len(load_image(_file(tmp_path, data), ImageRules(resize=100, quality=q)).data) for q in (30, 95))
    assert small < large / 2


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (ImageRules(min_side=31), "short side below --min-side 31"),
        (ImageRules(max_aspect=1.3), "aspect above --max-aspect 1.3"),
        (ImageRules(max_aspect=1.3, resize=10), "aspect above --max-aspect 1.3"),
    ],
)
def test_rules_leave_images_out(tmp_path: Path, rules: ImageRules, reason: str) -> None:
    with pytest.raises(Skip, match=reason):
        load_image(_file(tmp_path, photo(1, (40, 30))), rules)


@pytest.mark.parametrize("rules", [ImageRules(), ImageRules(resize=8)])
def test_what_is_no_image_is_left_out(tmp_path: Path, rules: ImageRules) -> None:
    for data, reason in (
        (photo(1)[:-100], "image does not decode"),
        (b"text", "image is not a JPEG, PNG or WebP image"),
        (b"", "image is not a JPEG, PNG or WebP image"),
        (_saved(Image.new("RGB", (4, 4)), "BMP"), "image is not a JPEG, PNG or WebP image"),
    ):
        with pytest.raises(Skip, match=reason):
            load_image(_file(tmp_path, data), rules)
    with pytest.raises(Skip, match="image missing"):
        load_image(tmp_path / "none", rules)
    with pytest.raises(Skip, match="image missing"):
        load_image(_file(tmp_path, b"a file") / "below.jpg", rules)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(Skip, match="image is no file"):
            load_image(path, rules)


def test_content_is_the_files_bytes(tmp_path: Path) -> None:
    one = content_hash(_file(tmp_path, photo(1)))
    assert one == content_hash(_file(tmp_path, photo(1))) != content_hash(_file(tmp_path, photo(2)))
    assert content_hash(tmp_path / "none") is None
