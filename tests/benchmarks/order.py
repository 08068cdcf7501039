"""40,000 shards, 400 million examples: how long to start, how long to any step of any epoch, how much memory.

The ratio says how many times as long it takes with 40,000 shards as with 400, to start or to get to a step.

    make bench PART=order

The index is real: a manifest of 40,000 lines, a table and a side file of token lengths per shard, read as blocks open.
Of tables there are 16 kinds under 40,000 names (hard links), and the tars are holes of the right size, so that it fits
on a disk.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.measuring import in_own_process, peak_megabytes
from tests.benchmarks.results import of_rounds, report
from vlp.data.arrays import write_npz
from vlp.data.dataset import Dataset
from vlp.data.index import open_index
from vlp.data.lengths import token_lengths
from vlp.data.manifest import INDEX, MANIFEST, Manifest, ShardEntry, fingerprint
from vlp.data.order import Order
from vlp.data.steps import StepMaker
from vlp.data.tables import ShardTable, make_entry, save_table
from vlp.seeds import Draw
from vlp.types import Pair, Slot

SHARDS, FEW, SAMPLES, KINDS = 40_000, 400, 10_000, 16
BATCH = 4096
TOKENIZER = "0123456789abcdef"


def make(folder: Path, shards: int) -> None:
    """An index of so many shards of about `SAMPLES` samples with one caption each, and nothing in the tars."""
    lengths = folder / INDEX / f"lengths-{TOKENIZER}"
    lengths.mkdir(parents=True)
    random = np.random.default_rng(0)
    kinds = []
    for kind in range(KINDS):
        samples = SAMPLES + 100 * (kind - KINDS // 2) + 50
        entry = make_entry(_table(samples, random), f"kind-{kind:02}.tar", samples * 40_960, f"{kind:032x}")
        save_table(folder / INDEX / f"kind-{kind:02}.npz", _table(samples, random), entry)
        arrays = {
            "captions": random.integers(8, 40, samples).astype(np.int32),
            "questions": np.zeros(0, np.int32),
            "checksum": np.frombuffer(entry.checksum.encode(), np.uint8),
        }
        write_npz(lengths / f"kind-{kind:02}.npz", arrays)
        with (folder / f"kind-{kind:02}.tar").open("wb") as file:
            file.truncate(entry.bytes)
        kinds.append(entry)
    entries = []
    for shard, kind in enumerate(random.integers(0, KINDS, shards).tolist()):
        one, name = kinds[kind], f"shard-{shard:06}"
        for place, ending in ((folder, "tar"), (folder / INDEX, "npz"), (lengths, "npz")):
            os.link(place / f"kind-{kind:02}.{ending}", place / f"{name}.{ending}")
        entries.append(ShardEntry(f"{name}.tar", one.bytes, one.samples, one.captions, one.questions, one.checksum))
    for place, ending in ((folder, "tar"), (folder / INDEX, "npz"), (lengths, "npz")):
        for kind in range(KINDS):
            (place / f"kind-{kind:02}.{ending}").unlink()
    manifest = Manifest(shards=tuple(entries), fingerprint=fingerprint(entries, False))
    (folder / INDEX / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _table(samples: int, random: np.random.Generator) -> ShardTable:
    places_S = np.arange(samples, dtype=np.int64) * 40_960
    ones_S, none_S = np.ones(samples, np.int32), np.zeros(samples, np.int32)
    return ShardTable(
        keys=tuple(f"{number:09}" for number in range(samples)),
        members={"jpg": (places_S, none_S + 30_000), "json": (places_S + 31_000, none_S + 200)},
        captions_S=ones_S,
        questions_S=none_S,
        regions_S=none_S,
        has_image_S=ones_S.astype(np.bool_),
        width_S=random.integers(200, 640, samples).astype(np.int32),
        height_S=random.integers(200, 640, samples).astype(np.int32),
    )


class Planned:
    """A task of plain pairs of pixels and captions; nothing is read."""

    wants_image, wants_regions, draws_pairs = True, False, False

    def pairs(self, slot: Slot, block: object, rng: Draw) -> tuple[Pair, ...]:
        return (Pair(int(block.sample_E[slot.example]), slot.example),)  # type: ignore[attr-defined]


def measure(folder: Path, groups: int) -> None:
    """Start, and go to steps all over 30 epochs, each from cold but for what the file system keeps."""
    imported = peak_megabytes()
    start = time.perf_counter()
    index = open_index(folder)
    dataset = Dataset(index, "captions", token_lengths(index, _no_count, TOKENIZER, 60))
    started = time.perf_counter() - start
    examples_S = dataset.examples_S
    last = 30 * int(examples_S.sum()) // BATCH
    seeks, next_steps = [], []
    for step in np.random.default_rng(1).integers(0, last, 10).tolist():
        start = time.perf_counter()
        order = Order([examples_S], seed=3, batch_size=BATCH, groups=groups)
        maker = StepMaker(
            [dataset],
            order,
            Planned(),  # type: ignore[arg-type]
            image_tokens=lambda regions: 49,
            micro_tokens=8192,
            rank=0,
            world_size=groups,
        )
        maker.plan(step)
        seeks.append(time.perf_counter() - start)
        start = time.perf_counter()
        maker.plan(step + 1)
        next_steps.append(time.perf_counter() - start)
    assert "torch" not in sys.modules, "of which half a gigabyte would be counted"
    result = {"start": started, "seeks": seeks, "plans": next_steps, "imports": imported, "peak": peak_megabytes()}
    print(json.dumps({"examples": int(examples_S.sum()), **result}))


def _no_count(texts: list[str]) -> list[int]:
    raise AssertionError("all lengths are there")


def main() -> None:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folders = {shards: Path(folder) / str(shards) for shards in (FEW, SHARDS)}
        for shards, place in folders.items():
            make(place, shards)
        for groups in (1, 8):
            said = {
                shards: in_own_process("tests.benchmarks.order", str(place), str(groups))
                for shards, place in folders.items()
            }
            few, many = said[FEW], said[SHARDS]
            figures = {
                "examples": many["examples"],
                "start, s": many["start"],
                "to a step of 30 epochs, s": float(np.median(many["seeks"])),
                "the worst, s": max(many["seeks"]),
                f"a further step of {BATCH}, ms": 1e3 * float(np.median(many["plans"])),
                "peak memory, MB": many["peak"],
                "of which imports, MB": many["imports"],
            }
            for name, one, other in (("start", [many["start"]], [few["start"]]), ("seek", many["seeks"], few["seeks"])):
                ratios = [more / less for more, less in zip(one, other, strict=True)]
                against = f"{SHARDS:,} shards against {FEW}, planned by one rank of {groups}"
                results.append(of_rounds(f"order/{name}/{groups}_groups", ratios, against=against, figures=figures))
    report("order", __doc__, results)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
