import colorsys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.unit.pictures import encoded, found, marked, png, ramps
from vlp.data.pixels import Fit, OwnShape, read_shaped, read_square, shown
from vlp.data.samples import Fault
from vlp.types import View


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_scaled_to_the_square(format: str) -> None:
    made = read_square(encoded(ramps(), format), 32)
    assert made.dtype == np.uint8
    assert made.shape == (3, 32, 32)
    assert made.transpose(1, 2, 0).flags.c_contiguous
    expected = np.asarray(ramps(32, 32)).transpose(2, 0, 1).astype(int)
    # A coarser ramp: half a pixel of the small image (4) and JPEG's rounding.
    assert np.abs(made - expected).max() < 8


def test_scaling_is_pillow_s_within_two_steps_of_255() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (150, 220, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(read_square(encoded(Image.fromarray(noise), "PNG"), 64) - expected.astype(int)).max() <= 2


def test_a_jpeg_shrunk_while_decoded_is_near_the_whole() -> None:
    # 1200 x 800 is decoded at an eighth; measured against a PNG of the same: 2.
    image = ramps(1200, 800)
    small, whole = read_square(encoded(image, quality=95), 64), read_square(encoded(image, "PNG"), 64)
    assert np.abs(small - whole.astype(int)).max() < 5


@pytest.mark.parametrize("view", [None, View(box=(0.4, 0.4, 0.6, 0.6))])
def test_a_jpeg_is_never_shrunk_below_the_size_of_what_is_seen(
    view: View | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(Image.Image, "draft", lambda image, mode, size: asked.append(size))
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda image, mode, size: asked.append(size))
    read_square(encoded(ramps(600, 520)), 50, view=view)
    assert asked == ([(50, 50)] if view is None else [(251, 251)])


def test_pairs_of_one_image_share_what_was_decoded() -> None:
    data, mirrored = encoded(ramps()), View(mirrored=True)
    made = read_square(data, 32)
    assert read_square(data, 32) is made
    assert not made.flags.writeable
    others = [read_square(data, 16), read_square(data, 32, "crop"), read_square(data, 32, view=mirrored)]
    assert [other.shape for other in others] == [(3, 16, 16), (3, 32, 32), (3, 32, 32)]
    assert (others[2] == made[:, :, ::-1]).all()
    assert (others[2] != made).any()
    assert read_square(encoded(ramps().rotate(90)), 32).tobytes() != made.tobytes()
    for number in range(20):
        read_square(encoded(ramps(40 + number, 30)), 32)
    assert read_square(data, 32) is not made, "a few are kept, not all"


@pytest.mark.parametrize(
    "view", [None, View(mirrored=True), View(box=(0.1, 0.2, 0.9, 0.8), mirrored=True, brightness=1.2)]
)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_pixels_are_written_where_they_are_wanted(format: str, view: View | None) -> None:
    data, out_SS3 = encoded(ramps(60, 40), format), np.zeros((2, 32, 32, 3), np.uint8)
    first = read_square(data, 32, view=view, out_SS3=out_SS3[0])
    again = read_square(data, 32, view=view, out_SS3=out_SS3[1])  # of those that are kept, copied
    elsewhere = read_square(bytes(bytearray(data)), 32, view=view)
    for made, where in ((first, out_SS3[0]), (again, out_SS3[1])):
        np.testing.assert_array_equal(made, elsewhere)
        np.testing.assert_array_equal(where.transpose(2, 0, 1), elsewhere)
        assert np.shares_memory(made, where)


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("view", [None, View(box=(0.1, 0.2, 0.9, 0.8), mirrored=True, brightness=1.2)])
@pytest.mark.parametrize("size", [(60, 40), (41, 67), (200, 60)])
def test_a_usual_jpeg_gives_the_same_without_pillow(
    size: tuple[int, int], view: View | None, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(ramps(*size))
    with monkeypatch.context() as patch:
        patch.setattr("vlp.data.pixels.open_image", None)
        made = read_square(data, 32, fit, view)
    monkeypatch.setattr("vlp.data.pixels.plain_jpeg_size", lambda data: None)
    np.testing.assert_array_equal(made, read_square(bytes(bytearray(data)), 32, fit, view))


def test_cropping_takes_the_square_in_the_middle() -> None:
    wide = marked(300, 100, (1 / 3, 0, 2 / 3, 1))
    assert read_square(encoded(wide, "PNG"), 50, "crop").min() > 250
    tall = marked(100, 300, (0, 0.4, 1, 0.6))
    box = found(read_square(encoded(tall, "PNG"), 50, "crop"))
    assert box == pytest.approx((0, 0.2, 1, 0.8), abs=0.021)
    assert shown(0, 0, "crop", None) == (0, 0, 1, 1)


@given(
    st.tuples(st.integers(20, 90), st.integers(20, 90)),
    st.tuples(st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.3, 0.5), st.floats(0.3, 0.5)),
    st.booleans(),
    st.sampled_from(["squash", "crop"]),
)
def test_any_part_is_seen_where_it_lies(
    size: tuple[int, int], part: tuple[float, float, float, float], mirrored: bool, fit: Fit
) -> None:
    x, y, width, height = part
    view = View(box=(x, y, x + width, y + height), mirrored=mirrored)
    made = read_square(encoded(ramps(*size), "PNG"), 40, fit, view).astype(float)
    # Red tells where along x, green where along y; a pixel of the picture is 255 / 20 at most.
    middle = made[:, 20, 20]
    assert middle[0] == pytest.approx(255 * (x + width / 2), abs=14)
    assert middle[1] == pytest.approx(255 * (y + height / 2), abs=14)
    assert (made[0, 20, 0] > made[0, 20, -1]) == mirrored


# -------------------------------------------------------------------------------------------------------- colour


def coloured(colour: tuple[int, int, int], **changes: float) -> list[int]:
    image = Image.new("RGB", (8, 8), colour)
    made: list[int] = read_square(encoded(image, "PNG"), 8, view=View(**changes))[:, 0, 0].tolist()
    return made


def test_brightness_and_contrast_change_values() -> None:
    assert coloured((100, 50, 200), brightness=0.5) == [50, 25, 100]
    assert coloured((100, 200, 250), brightness=1.2) == [120, 240, 255]
    half = Image.fromarray(np.repeat([[0, 200]], 4, 0).astype(np.uint8)).convert("RGB")
    made = read_square(encoded(half, "PNG"), 2, view=View(contrast=0.5))
    assert made[0, 0].tolist() == [50, 150]


def test_saturation_pulls_towards_the_pixel_s_grey() -> None:
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert coloured((200, 100, 50), saturation=0.0) == [grey] * 3
    assert coloured((90, 90, 90), saturation=0.3) == [90] * 3


def test_hue_turns_the_colour_circle_and_leaves_grey() -> None:
    assert coloured((120, 120, 120), hue=0.3) == pytest.approx([120] * 3, abs=1)
    assert coloured((150, 100, 90), hue=1.0) == pytest.approx([150, 100, 90], abs=1)
    turned = coloured((160, 110, 100), hue=1 / 3)
    before, after = (colorsys.rgb_to_yiq(*(v / 255 for v in rgb))[0] for rgb in ((160, 110, 100), turned))
    assert before == pytest.approx(after, abs=0.01), "as light as before"
    assert turned.index(max(turned)) != 0, "red is red no more"


def test_a_view_of_nothing_new_changes_nothing() -> None:
    data = encoded(ramps())
    assert (read_square(data, 32, view=View()) == read_square(data, 32)).all()


# ------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_image_is_a_fault(part: float) -> None:
    data = encoded(ramps(), quality=95)
    with pytest.raises(Fault) as caught:
        read_square(data[: int(len(data) * part)], 32)
    assert caught.value.member == "image"


@pytest.mark.parametrize("side", [12_000, 50_000])
def test_an_image_of_too_many_pixels_is_a_fault(side: int) -> None:
    with pytest.raises(Fault, match="pixels"):
        read_square(png(side, side, 8, 2, []), 32)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "I;16"])
def test_every_mode_is_taken_without_a_warning(mode: str) -> None:
    image = Image.fromarray(np.full((20, 20), 9000, np.uint16)) if mode == "I;16" else ramps(20, 20).convert(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_square(encoded(image, "JPEG" if mode == "CMYK" else "PNG"), 16).shape == (3, 16, 16)


# ------------------------------------------------------------------------------------------------------- own shapes

SHAPE = OwnShape(shortest=48, longest=80, patch=16)


@pytest.mark.parametrize(
    ("size", "made"),
    [
        ((100, 100), (48, 48)),
        ((64, 48), (48, 64)),
        ((48, 64), (64, 48)),
        ((70, 48), (48, 64)),  # 70 wide is cut down to four patches
        ((300, 100), (16, 80)),  # 144 wide would be too much, so 26.7 x 80
        ((1000, 10), (16, 80)),  # never less than a patch
    ],
)
def test_an_image_keeps_its_shape_in_whole_patches(size: tuple[int, int], made: tuple[int, int]) -> None:
    pixels = read_shaped(encoded(ramps(*size), "PNG"), SHAPE)
    assert pixels.shape == (3, *made)
    expected = np.asarray(ramps(*made[::-1])).transpose(2, 0, 1).astype(int)
    assert np.abs(pixels - expected).mean() < 8


def test_the_shape_is_that_of_the_part_that_is_seen() -> None:
    image = marked(200, 100, (0.5, 0, 1, 1))
    assert read_shaped(encoded(image, "PNG"), SHAPE, View(box=(0.5, 0, 1, 1))).shape == (3, 48, 48)
    mirrored = read_shaped(encoded(image, "PNG"), SHAPE, View(mirrored=True))
    assert mirrored.shape == (3, 32, 80)
    assert mirrored[:, :, :38].min() > 250
    assert mirrored[:, :, 42:].max() < 5


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_no_shape_has_more_patches_than_the_one_that_has_the_most(width: int, height: int) -> None:
    down, across = SHAPE.size(width, height)
    most = SHAPE.most
    assert down % 16 == across % 16 == 0
    assert min(down, across) <= 48
    assert max(down, across) <= 80
    assert down * across <= most[0] * most[1]
