"""What the loader's benchmarks read: real photos and region features, as shards and as loose files.

Photos are those of `VLP_TEST_DATA` (see CONTRIBUTING), or drawn ones of like size where that is absent.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.shard_making import texts, write_tar
from vlp.data.arrays import npy_bytes, read_npz
from vlp.data.dataset import Dataset
from vlp.data.index import build_index, open_index
from vlp.data.lengths import token_lengths
from vlp.data.samples import NPZ_NAMES

PHOTOS, SHARDS = 1600, 8
WORDS = "a photo of a thing beside another thing"


def test_data() -> Path | None:
    folder = Path(os.environ.get("VLP_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    return folder if folder.is_dir() else None


def photo_shards(folder: Path) -> str:
    """Shards of photos with one caption each; says what they hold."""
    photos, what = photo_bytes()
    _write(folder, [[("jpg", photo), ("json", texts(WORDS))] for photo in photos])
    return what


def photo_files(folder: Path) -> tuple[str, int]:
    """The same photos as loose files; says what they are, and how many."""
    photos, what = photo_bytes()
    folder.mkdir()
    for number, photo in enumerate(photos):
        (folder / f"{number:06}.jpg").write_bytes(photo)
    return what, len(photos)


def photo_bytes(count: int = PHOTOS) -> tuple[list[bytes], str]:
    """So many photos as files hold them, and what they are."""
    data = test_data()
    files = sorted((data / "uit_viic" / "images").glob("*.jpg"))[:count] if data else []
    photos = [file.read_bytes() for file in files] or list(_drawn(count))
    width, height = np.median([Image.open(io.BytesIO(photo)).size for photo in photos], axis=0)
    kind = "photos of uit_viic" if files else "drawn photos"
    kilobytes = sum(map(len, photos)) / len(photos) / 1000
    return photos, f"{len(photos)} {kind}, median {width:.0f} x {height:.0f}, {kilobytes:.0f} kB"


def region_shards(folder: Path, loose: Path) -> str:
    """Shards of region arrays, and the same as one npz file per image; says what they hold."""
    data = test_data()
    loose.mkdir()
    files = sorted((data / "regions").glob("*/*.npz")) if data else []
    for number, file in enumerate(files):
        (loose / f"{number:06}.npz").write_bytes(file.read_bytes())
    if not files:
        _made_regions(loose)
    samples = []
    for path in sorted(loose.glob("*.npz")):
        arrays = {NPZ_NAMES.get(name, name): array for name, array in read_npz(path).items()}
        arrays["boxes"] = arrays["boxes"][:, :4]
        members = [(f"{name}.npy", npy_bytes(np.ascontiguousarray(array))) for name, array in arrays.items()]
        samples.append([*members, ("json", texts(WORDS))])
    _write(folder, samples)
    rows, width = arrays["features"].shape
    kind = "npz files of `regions`" if files else "made-up npz files"
    return f"{len(samples)} {kind}, the last with {rows} regions of {width} numbers"


def dataset_of(folder: Path) -> Dataset:
    """The shards of a folder; every text counts five tokens, since texts are not what is measured."""
    build_index(folder)
    index = open_index(folder)
    return Dataset(index, "captions", token_lengths(index, lambda found: [5] * len(found), "five", 60))


def _write(folder: Path, samples: list[list[tuple[str, bytes]]]) -> None:
    size = -(-len(samples) // SHARDS)
    for shard in range(SHARDS):
        part = samples[shard * size : (shard + 1) * size]
        members = [
            (f"{shard * size + row:06}.{name}", data) for row, sample in enumerate(part) for name, data in sample
        ]
        write_tar(folder / f"shard-{shard:06}.tar", members)


def _drawn(count: int) -> Iterator[bytes]:
    """Photos of 300 x 224 with the detail of photos: noise, blurred."""
    random = np.random.default_rng(0)
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 256, (28, 38, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((300, 224), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
        yield file.getvalue()


def _made_regions(loose: Path, count: int = 1000, regions: int = 12, width: int = 1280) -> None:
    """As UNITER's folders: compressed, float16."""
    random = np.random.default_rng(0)
    for number in range(count):
        corners = np.sort(random.random((regions, 2, 2)), axis=1).reshape(regions, 4)
        np.savez_compressed(
            loose / f"{number:06}.npz",
            features=random.random((regions, width)).astype(np.float16),
            norm_bb=corners.astype(np.float16),
            conf=random.random(regions).astype(np.float16),
            soft_labels=random.random((regions, 81)).astype(np.float16),
        )


def caption_of(data: bytes) -> str:
    """The caption of a sample's JSON."""
    caption: str = json.loads(data)["captions"][0]
    return caption
