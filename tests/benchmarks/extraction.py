"""Extraction against the transformers library's VisualBERT and LXMERT: base size, the same weights, the same examples.

Theirs: eval mode, inference mode, padded batches of 32 in the order of the data, with masks, as its documentation
shows, in a process of its own. Ours: `Extractor`, which packs, with malloc set as `vlp extract` sets it. Both give the
pooled vector and all token states as arrays; reading and cutting into tokens is not counted. The outputs are compared
first. Captions are COCO's where VLP_TEST_DATA is there (five per photo), else made-up ones of like length; features are
random. An image has 10 to 100 regions, as a detector's confidence decides, or 36 (`_36`), with which texts alone are
padded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.measuring import Apart, device_of, interleaved, parser_of
from tests.benchmarks.pairs import FEWEST, MOST, PER_IMAGE, captions, tokenizer
from tests.benchmarks.peers import FEATURES, Peer, peer_of
from tests.benchmarks.results import Result, compared, report
from vlp.data.batch import ImageForm, collate
from vlp.data.text import TextEncoder
from vlp.features.extractor import Arrays, Extractor
from vlp.features.kinds import parse_what
from vlp.freed import keep
from vlp.models.model import Network
from vlp.types import Example, RegionInput
from vlp.vision_language_model import VisionLanguageModel

BATCH, TOKENS = 32, {"cpu": 2048, "cuda": 16384}
WHAT = "pooled,text,image"
FORM = ImageForm("regions", FEATURES)
COMPARED = 16
CASES = {
    "visualbert_base": ("visualbert", (FEWEST, MOST), 1.5),
    "lxmert_base": ("lxmert", (FEWEST, MOST), 1.5),
    "visualbert_base_36": ("visualbert", (36, 36), None),
    "lxmert_base_36": ("lxmert", (36, 36), None),
}
"""The library's model, how many regions an image has, and what the ratio is held to on a CPU."""


def examples(count: int, regions: tuple[int, int], text: TextEncoder) -> list[Example]:
    """Captions with the regions of their photos, as they lie in the data."""
    rng = np.random.default_rng(0)
    made: list[Example] = []
    for number, caption in enumerate(captions(count)):
        if number % PER_IMAGE == 0:
            image = _image(int(rng.integers(regions[0], regions[1] + 1)), rng)
        made.append(Example(str(number), *text.encode(caption), image))
    return made


def _image(count: int, rng: np.random.Generator) -> RegionInput:
    boxes_R4 = np.sort(rng.random((count, 2, 2), np.float32), axis=1).reshape(count, 4)
    return RegionInput(rng.random((count, FEATURES), np.float32), boxes_R4)


def extract_theirs(peer: Peer, given: Sequence[Example]) -> list[Arrays]:
    found = []
    with torch.inference_mode():
        for start in range(0, len(given), BATCH):
            part = given[start : start + BATCH]
            batch = collate(part, FORM, {})
            states = dict(zip(WHAT.split(","), peer.states(peer.inputs(batch)), strict=True))
            pooled_BH, text_BTH, image_BRH = (states[name].cpu() for name in WHAT.split(","))
            for row, (words, regions) in enumerate(
                zip(batch.text.packing.lengths, batch.image.packing.lengths, strict=True)
            ):
                own = {"pooled": pooled_BH[row], "text": text_BTH[row, :words], "image": image_BRH[row, :regions]}
                found.append({name: state.numpy().copy() for name, state in own.items()})
    return found


class TheirExtraction:
    """The library's class in its process."""

    def __init__(self, kind: str, device: str, data: Sequence[Example]) -> None:
        self._peer, self._data = peer_of(kind), data
        self._peer.model.to(device).eval()

    def first(self, count: int) -> list[Arrays]:
        return extract_theirs(self._peer, self._data[:count])

    def all(self) -> None:
        extract_theirs(self._peer, self._data)


def measure(name: str, count: int, repeats: int, device: str) -> Result:
    kind, regions, at_least = CASES[name]
    peer = peer_of(kind)
    with tempfile.TemporaryDirectory() as folder:
        network = Network.from_pretrained(peer.converted(Path(folder))).to(device)
        data = examples(count, regions, TextEncoder(tokenizer(Path(folder)), 64))
    extractor = Extractor(VisionLanguageModel(network).eval(), parse_what(WHAT), micro_tokens=TOKENS[device])
    against = f"transformers' {type(peer.model).__name__} in eval mode"
    del peer
    theirs = Apart(TheirExtraction, kind, device, data)
    apart = _difference(theirs("first", COMPARED), extractor.run(data[:COMPARED]))
    calls = {"theirs": partial(theirs, "all"), "vlp": partial(extractor.run, data)}
    seconds = interleaved(calls, repeats, device=device)
    theirs.close()
    found = compared(
        f"extraction/{name}/fp32",
        seconds,
        against=against,
        count=count,
        unit="examples",
        at_least=at_least if device == "cpu" else None,
        figures={"examples": count, "largest difference": apart},
    )
    print(f"{found.name}: {found.ratio:.2f} ({found.lowest:.2f} to {found.highest:.2f})", flush=True)
    return found


def _difference(one: Sequence[Arrays], other: Sequence[Arrays]) -> float:
    pairs = zip(one, other, strict=True)
    return max(float(np.abs(mine[name] - theirs[name]).max()) for mine, theirs in pairs for name in mine)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)} (default: all)")
    parser.add_argument("--examples", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    device = device_of(given.device)
    if device == "cpu":
        keep()
    names = given.cases or list(CASES)
    results = [measure(name, given.examples, given.repeats, device) for name in names]
    report("extraction", __doc__, results, device=device)


if __name__ == "__main__":
    main()
