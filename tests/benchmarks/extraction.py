"""Extraction against the transformers library's VisualBERT and LXMERT: base size, the same weights, the same examples.

    make bench PART=extraction

Theirs: eval mode, inference mode, padded batches of 32 in the order of the data, with masks, as its documentation
shows. Ours: `Extractor`, which packs. Both give the pooled vector and all token states as arrays; reading and cutting
into tokens is not counted. Runs are interleaved, and the outputs are compared first. Captions are COCO's where
VLP_TEST_DATA is there (five per photo), else lengths like theirs; features are random. LXMERT takes its 36 regions;
VisualBERT 36, or 10 to 100 as a detector's confidence decides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from tests.benchmarks.material import test_data
from tests.benchmarks.measuring import rate, spread
from tests.benchmarks.results import save, show
from vlp.data.text import TextEncoder
from vlp.features.extractor import Arrays, Extractor
from vlp.features.kinds import parse_what
from vlp.models.convert.checkpoint import convert_from, read_checkpoint
from vlp.models.convert.family import read_official
from vlp.models.convert.registry import family_of
from vlp.models.model import Network
from vlp.types import Example, RegionInput
from vlp.vision_language_model import VisionLanguageModel

BATCH, PER_PHOTO = 32, 5
WHAT = "pooled,text,image"
Theirs = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor, Tensor]]


def examples(count: int, regions: tuple[int, int]) -> list[Example]:
    """Captions with the regions of their photos, as they lie in the data."""
    rng = np.random.default_rng(0)
    made: list[Example] = []
    for number, length in enumerate(_lengths(count, rng)):
        if number % PER_PHOTO == 0:
            image = _image(int(rng.integers(regions[0], regions[1] + 1)), rng)
        ids_T = np.concatenate([[101], rng.integers(1000, 30000, length - 2), [102]])
        made.append(Example(str(number), ids_T, np.zeros(length, bool), np.arange(length), image))
    return made


def _image(count: int, rng: np.random.Generator) -> RegionInput:
    boxes_R4 = np.sort(rng.random((count, 2, 2), np.float32), axis=1).reshape(count, 4)
    return RegionInput(rng.random((count, 2048), np.float32), boxes_R4)


def _lengths(count: int, rng: np.random.Generator) -> list[int]:
    data = test_data()
    if data is None:
        return [int(length) for length in np.clip(rng.normal(13.5, 2.7, count), 8, 40)]
    captions = json.loads(next((data / "coco_mini" / "annotations").glob("captions*.json")).read_text())["annotations"]
    captions.sort(key=lambda caption: (caption["image_id"], caption["id"]))
    text = TextEncoder(data / "bert_vocab", 64)
    return [len(text.encode(caption["caption"])[0]) for caption in captions[:count]]


def padded(part: Sequence[Example]) -> dict[str, Tensor]:
    """A padded batch with its masks."""
    images = [example.image for example in part]
    assert all(isinstance(image, RegionInput) for image in images)
    features = [image.features_RD for image in images]  # type: ignore[union-attr]
    return {
        "ids": _stacked([example.token_ids_T for example in part]),
        "mask": _stacked([np.ones(len(example.token_ids_T), np.int64) for example in part]),
        "features": _stacked(features),
        "boxes": _stacked([image.boxes_R4 for image in images]),  # type: ignore[union-attr]
        "image_mask": _stacked([np.ones(len(each), np.int64) for each in features]),
    }


def _stacked(arrays: Sequence[NDArray[Any]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(array) for array in arrays], batch_first=True)


def visualbert() -> tuple[Any, Theirs]:
    model = transformers.VisualBertForPreTraining(transformers.VisualBertConfig(visual_embedding_dim=2048)).eval()

    def run(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        out = model.visual_bert(
            input_ids=batch["ids"],
            attention_mask=batch["mask"],
            visual_embeds=batch["features"],
            visual_attention_mask=batch["image_mask"],
            visual_token_type_ids=torch.ones_like(batch["image_mask"]),
        )
        text_BTH, image_BMH = out.last_hidden_state.split([batch["ids"].shape[1], batch["features"].shape[1]], dim=1)
        return out.pooler_output, text_BTH, image_BMH

    return model, run


def lxmert() -> tuple[Any, Theirs]:
    model = transformers.LxmertForPreTraining(transformers.LxmertConfig()).eval()

    def run(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        out = model.lxmert(
            input_ids=batch["ids"],
            attention_mask=batch["mask"],
            visual_feats=batch["features"],
            visual_pos=batch["boxes"],
            visual_attention_mask=batch["image_mask"],
        )
        return out.pooled_output, out.language_output, out.vision_output

    return model, run


def extract_theirs(run: Theirs, given: Sequence[Example]) -> list[Arrays]:
    found = []
    with torch.inference_mode():
        for start in range(0, len(given), BATCH):
            part = given[start : start + BATCH]
            pooled_BH, text_BTH, image_BMH = run(padded(part))
            for row, example in enumerate(part):
                assert example.image is not None
                own = {
                    "pooled": pooled_BH[row],
                    "text": text_BTH[row, : len(example.token_ids_T)],
                    "image": image_BMH[row, : len(example.image)],
                }
                found.append({name: state.numpy().copy() for name, state in own.items()})
    return found


def ours_of(theirs: Any, kind: str, folder: Path) -> VisionLanguageModel:
    """The same weights in our network, by way of `vlp convert`."""
    state = {name: tensor.clone().contiguous() for name, tensor in theirs.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(theirs.config.to_dict(), default=str))
    family, official = family_of(kind, "--from"), read_official(folder / "config.json")
    checkpoint = read_checkpoint(folder / "model.safetensors")
    convert_from(kind, family, checkpoint, family.config(official), family.counts(official), folder / "ours")
    return VisionLanguageModel(Network.from_pretrained(folder / "ours")).eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.manual_seed(0)
    cases = {
        "LXMERT, 36 regions": (lxmert, "hf-lxmert", (36, 36)),
        "VisualBERT, 36 regions": (visualbert, "hf-visualbert", (36, 36)),
        "VisualBERT, 10 to 100": (visualbert, "hf-visualbert", (10, 100)),
    }
    rows, result = [], {}
    for name, (make, kind, regions) in cases.items():
        model, run = make()
        with tempfile.TemporaryDirectory() as folder:
            ours = ours_of(model, kind, Path(folder))
        data = examples(given.examples, regions)
        extractor = Extractor(ours, parse_what(WHAT), micro_tokens=2048)
        differ = _difference(extract_theirs(run, data[:40]), extractor.run(data[:40]))
        calls = {"theirs": partial(extract_theirs, run, data), "ours": partial(extractor.run, data)}
        seconds = _interleaved(calls, given.repeats)
        ratios = [theirs / ours_s for theirs, ours_s in zip(seconds["theirs"], seconds["ours"], strict=True)]
        rates = {who: rate(given.examples, taken) for who, taken in seconds.items()}
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((name, spread(rates["theirs"]), spread(rates["ours"]), ratio, f"{differ:.0e}"))
        result[name] = {"examples_per_second": rates, "ratios": ratios, "largest_difference": differ}
        print(rows[-1], flush=True)
    show("examples a second", ("", "transformers", "vlp", "ratio", "largest difference"), rows)
    save(
        "extraction",
        {"examples": given.examples, "repeats": given.repeats, "threads": torch.get_num_threads()} | result,
    )


def _interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _difference(one: Sequence[Arrays], other: Sequence[Arrays]) -> float:
    pairs = zip(one, other, strict=True)
    return max(float(np.abs(mine[name] - theirs[name]).max()) for mine, theirs in pairs for name in mine)


if __name__ == "__main__":
    main()
