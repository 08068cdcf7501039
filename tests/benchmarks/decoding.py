"""Which decoder makes a JPEG into a square of 224 x 224 fastest, by the size of the photo.

    make bench PART=decoding

Photos of `tests.benchmarks.material` as they are, and enlarged. All decoders but the last two are followed by the same
resize (torch's, of bytes). CPU time, one thread, several rounds over the same photos, the decoders in turn.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg

from tests.benchmarks.material import photo_bytes
from tests.benchmarks.results import Result, of_rounds, report
from vlp.data.pixels import read_square

SIZE, PHOTOS, ROUNDS = 224, 100, 5
ENLARGED = (1, 2, 3, 4)
Decoder = Callable[[bytes], object]


def _resized(pixels_3HW: Tensor) -> Tensor:
    return F.interpolate(pixels_3HW[None], size=(SIZE, SIZE), mode="bilinear", antialias=True)[0]


def _torchvision(data: bytes) -> Tensor:
    return _resized(decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB))


def _pillow(data: bytes, draft: bool = False) -> Tensor:
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft("RGB", (SIZE, SIZE))
    return _resized(torch.from_numpy(np.asarray(image.convert("RGB"))).permute(2, 0, 1))


def _pillow_alone(data: bytes) -> object:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


DECODERS: dict[str, Decoder] = {
    "torchvision": _torchvision,
    "pillow": _pillow,
    "pillow_draft": lambda data: _pillow(data, draft=True),
    "pillow_alone": _pillow_alone,
    "vlp": lambda data: read_square(data, SIZE),
}
AGAINST = {
    "torchvision": "torchvision's decoder",
    "pillow": "Pillow",
    "pillow_draft": "Pillow, shrunk on load",
    "pillow_alone": "Pillow with its own resize",
}


def main() -> None:
    torch.set_num_threads(1)
    photos, what = photo_bytes()
    results: list[Result] = []
    for times in ENLARGED:
        files = [_enlarged(photo, times) for photo in photos[:PHOTOS]]
        width, height = np.median([Image.open(io.BytesIO(file)).size for file in files], axis=0)
        rounds = _milliseconds(files)
        own = rounds.pop("vlp")
        for name, measured in rounds.items():
            ratios = [theirs / ours for ours, theirs in zip(own, measured, strict=True)]
            figures = {"vlp, ms a photo": statistics.median(own), "theirs, ms a photo": statistics.median(measured)}
            named = f"decoding/{width:.0f}x{height:.0f}/{name}"
            results.append(of_rounds(named, ratios, against=f"{AGAINST[name]}; {what}", figures=figures))
    report("decoding", __doc__, results)


def _enlarged(photo: bytes, times: int) -> bytes:
    if times == 1:
        return photo
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    stream = io.BytesIO()
    image.resize((image.width * times, image.height * times), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _milliseconds(files: list[bytes]) -> dict[str, list[float]]:
    """CPU time of a photo by decoder, for each round."""
    rounds: dict[str, list[float]] = {name: [] for name in DECODERS}
    for _ in range(ROUNDS):
        for name, decode in DECODERS.items():
            begun = time.process_time()
            for file in files:
                decode(file)
            rounds[name].append(1000 * (time.process_time() - begun) / len(files))
    return rounds


if __name__ == "__main__":
    main()
