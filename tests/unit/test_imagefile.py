import warnings

import numpy as np
import pytest
from PIL import Image

from tests.unit.pictures import encoded, found, marked, png, ramps
from vlp.data.imagefile import ImageFault, checked_image, image_size, open_image, plain_jpeg_size, upright

CORNER = (0.0, 0.0, 0.25, 0.25)
HELD = {
    1: Image.Transpose.FLIP_LEFT_RIGHT,  # not used: upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera that was held so lays an upright picture into the file."""


def held(number: int, format: str) -> bytes:
    """A picture of 80 x 40 with a mark in its upper left corner, as a camera that was held so writes it."""
    picture = marked(80, 40, CORNER)
    exif = Image.Exif()
    exif[0x0112] = number
    stored = picture if number == 1 else picture.transpose(HELD[number])
    return encoded(stored, format, exif=exif, quality=95)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_photo_is_upright_however_the_camera_was_held(number: int, format: str) -> None:
    data = held(number, format)
    assert image_size(data) == (80, 40)
    assert checked_image(data)[:2] == (80, 40)
    shown = upright(open_image(data))
    assert found(np.asarray(shown).transpose(2, 0, 1)) == pytest.approx(CORNER, abs=0.03)
    assert np.array_equal(upright(shown), shown), "once is enough"


def test_the_size_of_a_photo_on_its_side_is_in_the_head_of_its_file() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(ramps(800, 600), exif=exif, quality=95)
    assert image_size(data[:4096]) == (600, 800)


@pytest.mark.parametrize("block", [b"Exif\0\0damaged", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_a_damaged_exif_block_says_nothing(block: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(encoded(ramps(30, 20), exif=block)) == (30, 20)


def test_sixteen_bits_become_eight_by_their_upper_half() -> None:
    values = np.array([[0, 255, 256, 9000, 30000, 65535]], ">u2")
    expected = [0, 0, 1, 35, 117, 255]
    grey = upright(open_image(png(6, 1, 16, 0, [values.tobytes()])))
    assert np.asarray(grey)[0].tolist() == [[value] * 3 for value in expected]
    colour = upright(open_image(png(2, 1, 16, 2, [values.tobytes()])))
    assert np.asarray(colour)[0].tolist() == [expected[:3], expected[3:]]


def test_what_is_transparent_lies_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (200, 100, 0, 255))
    clear.putpixel((1, 0), (0, 0, 0, 0))
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 200, 100, 0])
    palette.putpixel((1, 0), 0)
    files = [encoded(clear, "PNG"), encoded(palette, "PNG", transparency=0), encoded(clear, "WEBP", lossless=True)]
    for data in files:
        assert np.asarray(upright(open_image(data)))[0].tolist() == [[200, 100, 0], [255, 255, 255]]
    grey = np.asarray(upright(open_image(png(2, 1, 8, 4, [bytes([90, 255, 90, 0])]))))
    assert grey[0].tolist() == [[90] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB", "P", "1"])
def test_every_mode_becomes_the_same_picture(mode: str) -> None:
    grey = Image.fromarray(np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)).convert("RGB")
    data = encoded(grey.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    shown = upright(open_image(data))
    assert shown.mode == "RGB"
    # One bit dithers: means of 8 x 8 pixels are compared. Measured: 4 for P and 1, else at most 2.
    means = [np.asarray(image, float).reshape(8, 8, 8, 8, 3).mean((1, 3)) for image in (grey, shown)]
    assert np.abs(means[0] - means[1]).max() < 10


@pytest.mark.parametrize("side", [12_000, 50_000])
def test_a_header_that_claims_too_many_pixels_is_refused_without_a_warning(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageFault, match="pixels"):
            open_image(png(side, side, 8, 2, []))


def test_a_usual_jpeg_is_known_by_its_header_alone() -> None:
    data = encoded(ramps(60, 41))
    assert plain_jpeg_size(data) == (60, 41) == open_image(data).size
    header = data[: data.index(b"\xff\xda") + 12]
    assert plain_jpeg_size(header) == (60, 41)
    assert plain_jpeg_size(header[:-12]) is None


def test_what_pillow_has_to_look_at_is_no_usual_jpeg() -> None:
    picture, exif = ramps(60, 41), Image.Exif()
    exif[0x0112] = 6
    unusual = {
        "png": encoded(picture, "PNG"),
        "grey": encoded(picture.convert("L")),
        "four colours": encoded(picture.convert("CMYK")),
        "progressive": encoded(picture, progressive=True),
        "turned": encoded(picture, exif=exif.tobytes()),
        "none": b"",
    }
    assert [name for name, data in unusual.items() if plain_jpeg_size(data)] == []
    data = encoded(picture)
    place = data.index(b"\xff\xc0") + 5
    for height, width in ((0, 60), (50_000, 50_000)):
        changed = data[:place] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[place + 4 :]
        assert plain_jpeg_size(changed) is None
