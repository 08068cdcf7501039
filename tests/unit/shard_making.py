"""Small shards for tests: made by our writer, or member by member where a test needs them wrong."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_tools.writer import ShardWriter
from vlp.data.arrays import npy_bytes
from vlp.types import Question, Regions

WIDTH = 6
CLASSES = 3


def photo(number: int = 0, size: tuple[int, int] = (20, 12), kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def some_regions(count: int, number: int = 0, width: int = WIDTH) -> Regions:
    random = np.random.default_rng(number)
    corners_R22 = np.sort(random.random((count, 2, 2)), axis=1)
    return Regions(
        features_RD=random.random((count, width)).astype(np.float16),
        boxes_R4=corners_R22.reshape(count, 4).astype(np.float32),
        confidence_R=random.random(count).astype(np.float32),
        class_probs_RC=random.random((count, CLASSES)).astype(np.float16),
    )


def write_samples(out: Path, samples: int = 7, per_shard: int = 3) -> None:
    """Sample i has i % 3 captions, i % 2 questions, i % 4 regions, and an image unless i % 4 is 3."""
    with ShardWriter(out, per_shard) as writer:
        for i in range(samples):
            writer.write(
                key=f"s{i}",
                image=photo(i) if i % 4 != 3 else None,
                image_extension="jpg",
                regions=some_regions(i % 4, i) if i % 4 else None,
                captions=[f"caption {n} of {i} " + "word " * n for n in range(i % 3)],
                questions=[Question(f"what is {i}?", ("one", "two"), f"q{i}")] * (i % 2),
                metadata={"id": i},
            )


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar with exactly these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def texts(*captions: str, **more: Any) -> bytes:
    return json.dumps({"captions": list(captions), **more}).encode()


def some_arrays(number: int) -> dict[str, Any]:
    """The arrays of `some_regions` by the names of their members."""
    regions = some_regions(number)
    return {
        "features": regions.features_RD,
        "boxes": regions.boxes_R4,
        "confidence": regions.confidence_R,
        "class_probs": regions.class_probs_RC,
    }


def region_members(key: str, **changes: Any) -> list[tuple[str, bytes]]:
    """The `.npy` members of a sample with two regions; `features=...` and so on replaces one, None drops it."""
    arrays = {**some_arrays(2), **changes}
    return [(f"{key}.{name}.npy", npy_bytes(array)) for name, array in arrays.items() if array is not None]
