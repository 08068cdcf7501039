import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlp.data.image import PixelImages, RegionImages
from vlp.data.samples import Fault
from vlp.types import Regions, Sample

PLAIN = PixelImages(size=32, tokens_per_image=4, mean=(0, 0, 0), std=(1, 1, 1))


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo(width: int = 300, height: int = 200) -> Image.Image:
    """Smooth, so that JPEG and scaling change little."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def pixels(data: bytes, images: PixelImages = PLAIN) -> np.ndarray:
    prepared = images.prepare(Sample("key", image=data))
    assert prepared is not None
    assert len(prepared) == images.tokens_per_image
    assert prepared.pixels_3HW.dtype == np.float32
    assert prepared.pixels_3HW.shape == (3, images.size, images.size)
    return prepared.pixels_3HW


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pixels_are_scaled_to_the_square(format: str) -> None:
    found = pixels(encoded(photo(), format))
    expected = np.asarray(photo(32, 32)).transpose(2, 0, 1) / 255
    # A coarser ramp: half a pixel of the small image (4/255) and JPEG's rounding.
    assert np.abs(found - expected).max() < 0.03


def test_a_jpeg_shrunk_while_decoded_is_near_the_whole() -> None:
    # 1200 x 800 is decoded at an eighth; measured against a PNG of the same: 0.006.
    image = photo(1200, 800)
    assert np.abs(pixels(encoded(image, quality=95)) - pixels(encoded(image, "PNG"))).max() < 0.02


def test_mean_and_std_are_taken_per_channel() -> None:
    images = PixelImages(size=8, tokens_per_image=1, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    found = pixels(encoded(Image.new("RGB", (8, 8), (255, 0, 255)), "PNG"), images)
    assert np.allclose(found[:, 0, 0], [1, -1, 0.5], atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(np.full((20, 20), 9000, np.uint16)) if mode == "I;16" else photo(20, 20).convert(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(pixels(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))).all()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_image_is_a_fault(part: float) -> None:
    data = encoded(photo(), quality=95)
    with pytest.raises(Fault) as caught:
        PLAIN.prepare(Sample("key", image=data[: int(len(data) * part)]))
    assert caught.value.member == "image"


def png_of_size(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 50_000])
def test_an_image_of_too_many_pixels_is_a_fault_and_no_warning(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Fault, match="pixels"):
            PLAIN.prepare(Sample("key", image=png_of_size(side, side)))


def test_a_sample_without_an_image_gives_none() -> None:
    assert PLAIN.prepare(Sample("key")) is None
    assert RegionImages(feature_width=3).prepare(Sample("key")) is None


def regions(count: int, confidence: list[float] | None) -> Sample:
    features = np.arange(count, dtype=np.float16)[:, None].repeat(3, 1)
    boxes = np.full((count, 4), 1.0005, np.float16)
    probs = np.eye(count, 5, dtype=np.float16)
    scores = None if confidence is None else np.array(confidence, np.float16)
    return Sample("key", regions=Regions(features, boxes, scores, probs))


def test_the_surest_regions_are_kept_in_their_order() -> None:
    found = RegionImages(feature_width=3, max_regions=2).prepare(regions(4, [0.1, 0.9, 0.3, 0.5]))
    assert found is not None
    assert found.features_RD[:, 0].tolist() == [1, 3]
    assert found.confidence_R is not None
    assert np.allclose(found.confidence_R, [0.9, 0.5], atol=1e-3)
    assert found.class_probs_RC is not None
    assert found.class_probs_RC.argmax(1).tolist() == [1, 3]
    for array in (found.features_RD, found.boxes_R4, found.confidence_R, found.class_probs_RC):
        assert array.dtype == np.float32
    assert found.boxes_R4.max() == 1, "boxes are clipped"


def test_without_confidence_the_first_regions_are_kept() -> None:
    images = RegionImages(feature_width=3, max_regions=2)
    found = images.prepare(regions(4, None))
    assert found is not None
    assert found.features_RD[:, 0].tolist() == [0, 1]
    assert [images.tokens(count) for count in (0, 1, 4)] == [0, 1, 2]


def test_features_of_another_width_are_a_fault() -> None:
    with pytest.raises(Fault, match="3 numbers per region, not 5"):
        RegionImages(feature_width=5).prepare(regions(2, None))
