"""The loader's speed: photos against WebDataset's own pipeline, regions against a file per image.

    make bench PART=loader
    python -m tests.benchmarks.loader memory

Photos: JPEGs out of local tars, decoded and scaled to 224 x 224, in shuffled batches of 64. Both sides read the same
tars, parse the same JSON and call the same function on the same bytes (`vlp.data.pixels.read_square`); a third row is
WebDataset with its own decoder (`decode("pilrgb")`) and Pillow's resize. Regions: features, boxes, confidence and class
probabilities as float32 in shuffled batches of 64, from shards of raw arrays and from one npz file per image. Each side
is run in turn, several times; the first batch is not counted, so that starting workers is not. Memory: that of the
process and its workers over three epochs.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from tests.benchmarks.material import caption_of, dataset_of, photo_shards, region_shards
from tests.benchmarks.measuring import in_own_process, megabytes
from tests.benchmarks.results import Result, of_rounds, report, save, show
from vlp.data.batch import collate
from vlp.data.dataset import Dataset
from vlp.data.image import PixelImages, RegionImages
from vlp.data.index import Block
from vlp.data.loader import StepLoader
from vlp.data.order import Order
from vlp.data.pixels import read_square
from vlp.seeds import Draw
from vlp.types import Batch, Example, Pair, Sample, Slot

SIZE, BATCH, REPEATS, EPOCHS = 224, 64, 4, 3
WORKERS = (0, 1, 2)
TOKENS = np.arange(5)
AGAINST = {
    "webdataset": "WebDataset's pipeline, its own decoder and Pillow's resize",
    "webdataset_our_decoder": "WebDataset's pipeline calling vlp's decoder",
    "npz_files": "a Dataset that reads an npz file per image",
}
Batches = Callable[[], Iterable[int]]
"""Starts a loader; its batches, each as the number of images in it."""


class Plain:
    """A task that does nothing but what is measured: the image made ready when tasks do it, and five tokens of text."""

    draws_pairs = False

    def __init__(self, images: PixelImages | RegionImages) -> None:
        self.images = images
        self.wants_image, self.wants_regions = images.wants_image, images.wants_regions

    def pairs(self, slot: Slot, block: Block, rng: Draw) -> tuple[Pair, ...]:
        return (Pair(int(block.sample_E[slot.example]), slot.example),)

    def shown(self, image: Sample, rng: Draw) -> Sample:
        return replace(image, shown=self.images.prepare(image)) if self.wants_image else image

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, number: int, rng: Draw, step: int
    ) -> Example:
        assert text.captions
        prepared = image.shown if self.wants_image else self.images.prepare(image)
        return Example("", TOKENS, TOKENS == 0, TOKENS, prepared)

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        batch = collate([example for slot in examples for example in slot], self.images.form, {})
        self.images.batch_ends()
        return batch


def ours(dataset: Dataset, images: PixelImages | RegionImages, workers: int) -> Batches:
    order = Order([dataset.examples_S], seed=0, batch_size=BATCH, block_shards=8)
    steps = int(dataset.examples_S.sum()) // BATCH

    def start(epochs: int = 1) -> Iterator[int]:
        loader = StepLoader(
            [dataset],
            order,
            Plain(images),
            image_tokens=images.tokens,
            micro_tokens=1 << 30,
            first_step=0,
            last_step=steps * epochs,
            workers=workers,
        )
        for step in loader:
            (batch,) = step.micro_batches
            assert batch.image.packing.tokens
            yield len(batch)

    return start


# ---------------------------------------------------------------------------------------------------------- photos


def webdataset_s(folder: Path, workers: int, *, own_decoder: bool) -> Batches:
    """WebDataset's pipeline as its documentation has it: shards shuffled, samples shuffled in a buffer, batched."""
    shards = sorted(map(str, folder.glob("*.tar")))

    def start() -> Iterator[int]:
        pipeline = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000)
        if own_decoder:
            pipeline = pipeline.decode("pilrgb").to_tuple("jpg", "json").map_tuple(_scaled, _first)
        else:
            pipeline = pipeline.to_tuple("jpg", "json").map_tuple(_square, caption_of)
        batched = pipeline.batched(BATCH, collation_fn=_stacked, partial=False)
        for pixels, _ in DataLoader(batched, batch_size=None, num_workers=workers):
            yield len(pixels)

    return start


def _square(data: bytes) -> np.ndarray[Any, Any]:
    return read_square(data, SIZE)


def _scaled(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _first(record: dict[str, Any]) -> str:
    return str(record["captions"][0])


def _stacked(samples: list[tuple[np.ndarray[Any, Any], str]]) -> tuple[torch.Tensor, list[str]]:
    return torch.from_numpy(np.stack([pixels for pixels, _ in samples])), [caption for _, caption in samples]


def photos(folder: Path) -> list[Result]:
    what = photo_shards(folder / "photos")
    dataset = dataset_of(folder / "photos")
    images = PixelImages(SIZE, 49)
    tried = {
        workers: {
            "vlp": ours(dataset, images, workers),
            "webdataset_our_decoder": webdataset_s(folder / "photos", workers, own_decoder=False),
            "webdataset": webdataset_s(folder / "photos", workers, own_decoder=True),
        }
        for workers in WORKERS
    }
    return compare("photos", f"{what}, to {SIZE} x {SIZE}", tried)


# --------------------------------------------------------------------------------------------------------- regions


class NpzFiles(TorchDataset[dict[str, torch.Tensor]]):
    """One npz per image: what most training code does with UNITER's folders."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npz"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        with np.load(self.paths[number]) as arrays:
            return {
                "features": torch.from_numpy(arrays["features"].astype(np.float32)),
                "boxes": torch.from_numpy(arrays["norm_bb"][:, :4].astype(np.float32)),
                "confidence": torch.from_numpy(arrays["conf"].astype(np.float32)),
                "class_probs": torch.from_numpy(arrays["soft_labels"].astype(np.float32)),
            }


def _packed(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    found = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
    return {**found, "lengths": torch.tensor([len(sample["boxes"]) for sample in samples])}


def npz_files(folder: Path, workers: int) -> Batches:
    def start() -> Iterator[int]:
        loader = DataLoader(
            NpzFiles(folder), batch_size=BATCH, shuffle=True, collate_fn=_packed, num_workers=workers, drop_last=True
        )
        for batch in loader:
            yield len(batch["lengths"])

    return start


def regions(folder: Path) -> list[Result]:
    what = region_shards(folder / "regions", folder / "loose")
    dataset = dataset_of(folder / "regions")
    width = dataset.index.manifest.feature_width
    assert width is not None
    tried = {
        workers: {
            "vlp": ours(dataset, RegionImages(width, max_regions=100), workers),
            "npz_files": npz_files(folder / "loose", workers),
        }
        for workers in WORKERS
    }
    return compare("regions", what, tried)


# ---------------------------------------------------------------------------------------------------------- running


def compare(name: str, what: str, tried: dict[int, dict[str, Batches]]) -> list[Result]:
    rates: dict[int, dict[str, list[float]]] = {
        workers: {side: [] for side in sides} for workers, sides in tried.items()
    }
    for _ in range(REPEATS):
        for workers, sides in tried.items():
            for side, start in sides.items():
                rates[workers][side].append(_rate(start))
    results = []
    for workers, sides_ in rates.items():
        own = sides_.pop("vlp")
        for side, measured in sides_.items():
            # Each round's own ratio: what slowed the machine in a round slowed both sides.
            ratios = [one / other for one, other in zip(own, measured, strict=True)]
            figures = {"vlp, images/s": statistics.median(own), "theirs, images/s": statistics.median(measured)}
            named = f"loader/{name}/{workers}_workers/{side}"
            results.append(of_rounds(named, ratios, against=f"{AGAINST[side]}; {what}", figures=figures))
    return results


def _rate(start: Batches) -> float:
    """Images per second after the first batch."""
    torch.set_num_threads(1)
    batches = iter(start())
    next(batches)
    begun = time.perf_counter()
    count = sum(batches)
    return count / (time.perf_counter() - begun)


# ----------------------------------------------------------------------------------------------------------- memory


def memory(folder: Path) -> None:
    what = photo_shards(folder / "photos")
    region_shards(folder / "regions", folder / "loose")
    found = {
        name: in_own_process("tests.benchmarks.loader", "measure-memory", str(folder / name))["epochs"]
        for name in ("photos", "regions")
    }
    rows = [(name, *(f"{each:.0f} MB" for each in epochs)) for name, epochs in found.items()]
    columns = ("shards", *(f"after epoch {number}" for number in range(1, EPOCHS + 1)))
    show(f"Memory of the process and its two workers ({what}, and regions)", columns, rows)
    save("loader-memory", {"what": what, "megabytes": found})


def measure_memory(folder: Path) -> None:
    dataset = dataset_of(folder)
    width = dataset.index.manifest.feature_width
    images = PixelImages(SIZE, 49) if width is None else RegionImages(width, max_regions=100)
    steps, epochs = int(dataset.examples_S.sum()) // BATCH, []
    for number, _ in enumerate(ours(dataset, images, workers=2)(EPOCHS), start=1):
        if number % steps == 0:
            processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
            epochs.append(sum(map(megabytes, processes)))
    print(json.dumps({"epochs": epochs}))


def main(parts: list[str]) -> None:
    if parts[:1] == ["measure-memory"]:
        measure_memory(Path(parts[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        if parts == ["memory"]:
            memory(Path(folder))
        else:
            report("loader", __doc__, [*photos(Path(folder)), *regions(Path(folder))])


if __name__ == "__main__":
    main(sys.argv[1:])
