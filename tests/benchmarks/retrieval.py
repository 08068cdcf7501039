"""Scoring every pair of some images and captions: pairs a second against the naive cross-encoder, equal scores.

    make bench PART=retrieval
    python -m tests.benchmarks.retrieval
    python -m tests.benchmarks.retrieval --size tiny --images 200 --captions 1000

vlp scores as `vlp evaluate` does for retrieval: a photo and a caption go once through what they do not share, the rest
runs packed for every pair. Naive is the transformers library's class with the same weights, in eval mode, in padded
batches of 64 pairs, image by image, both towers run again for each pair; `matching_alone` is the same without its other
heads, which the class always runs. For an image tower (ALBEF's shape, which that library lacks) naive is vlp's own
network on whole pairs, 64 at once. LXMERT has 36 regions an image, VisualBERT 10 to 100, ALBEF photos; captions are
real ones. In each round vlp scores the whole sample, reading it included, and the naive encoder one batch out of it,
with its data ready in memory. The library's class has a process of its own, since `vlp evaluate`, and so the benchmark,
sets malloc for its own. `make bench` takes 8 images and 20 captions instead of 20 and 50: with fewer of either what one
of them alone decides weighs more, and the ratios are lower.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.benchmarks.measuring import Apart, device_of, parser_of, wait_for
from tests.benchmarks.pairs import PER_IMAGE, photo_pairs, region_pairs, tokenizer
from tests.benchmarks.peers import Peer, Size, peer_of
from tests.benchmarks.results import Result, of_rounds, report
from vlp.assemble import open_dataset
from vlp.config import read_yaml
from vlp.data.text import TextEncoder
from vlp.distributed import World, world
from vlp.evaluate import Inference
from vlp.freed import keep
from vlp.models.model import ModelConfig, Network
from vlp.objectives.ranking import match_score
from vlp.resources import shipped
from vlp.tasks.candidates import Candidates, find_candidates
from vlp.tasks.judge import Judge
from vlp.tasks.module import TaskModule
from vlp.tasks.retrieval import RetrievalConfig, RetrievalTask
from vlp.tasks.scoring import Scorer
from vlp.tasks.task import Setting
from vlp.types import Batch, Example

BATCH, MICRO_TOKENS = 64, 8192
"""Pairs of the naive encoder at once; `vlp evaluate`'s own token budget."""
Naive = Callable[[Batch], tuple[Tensor, float]]
"""The log odds that the pairs of a batch match, and the seconds that they took."""
Results = Iterator[Result]


class Case:
    """A task with its network and its candidates, all of whose pairs are to be scored."""

    def __init__(self, network: Network, shards: Path, words: Path, images: int, captions: int, device: str) -> None:
        text = TextEncoder(words, network.config.text.max_length)
        self.task = RetrievalTask(RetrievalConfig(head="itm"), Setting(network.config, text, 0))
        assert self.task.ranking is not None
        self.ranking = self.task.ranking
        self.runner = Inference(TaskModule(network, self.task.objectives), World(0, 1, 0, torch.device(device)))
        self.judge = Judge(self.runner, open_dataset(shards, "captions", text), MICRO_TOKENS, 0)
        found = find_candidates(self.task, self.judge.dataset, images_with(captions, images))
        texts = (found.texts[:captions], found.image_T[:captions])
        self.candidates = Candidates(found.rows[:images], found.places[:images], *texts)
        self.pairs = [(image, text) for image in range(images) for text in range(captions)]

    def scores(self, images: int | None = None) -> NDArray[np.float32]:
        """As retrieval's evaluation works them out, [I, T]; of the first images alone, if so many are given."""
        known = self.candidates
        some = Candidates(known.rows[:images], known.places[:images], known.texts, known.image_T)
        scorer = Scorer(self.task, self.judge, some, apart=self.task.apart)
        found = scorer.matches(self.ranking, [np.arange(len(some.texts))] * len(some))
        assert found is not None
        return found

    def batch(self, pairs: Sequence[tuple[int, int]]) -> Batch:
        """Whole pairs, packed."""
        return self.task.collate([[self._example(*pair)] for pair in pairs], 0)

    def _example(self, image: int, text: int) -> Example:
        sample = self.judge.dataset.read(
            *self.candidates.rows[image], image=self.task.wants_image, regions=self.task.wants_regions, texts=False
        )
        example = self.task.bare_example(sample, self.candidates.texts[text])
        example.targets[self.ranking.name] = self.ranking.target()
        return example

    def whole(self, batch: Batch) -> Tensor:
        """Our network on whole pairs."""
        return self.judge.run(batch, lambda module, moved: match_score(module.scores(moved, self.ranking.name)))


def compared(name: str, case: Case, naive: Mapping[str, Naive], bar: float | None, rounds: int, device: str) -> Results:
    """Rounds of all pairs by us and one batch of each naive encoder, with the largest difference of scores.

    Args:
        naive: by what stands behind the name of the result, and what it is.
    """
    starts = np.linspace(0, len(case.pairs) - BATCH, rounds).astype(int)
    ours: list[float] = []
    theirs: dict[str, list[float]] = {each: [] for each in naive}
    differ = dict.fromkeys(naive, 0.0)
    case.scores(images=1)  # neither side's first calls count
    for call in naive.values():
        call(case.batch(case.pairs[:8]))
    for start in starts:
        pairs = case.pairs[start : start + BATCH]
        batch = case.batch(pairs)
        begun = _now(device)
        scores_IT = case.scores()
        ours.append(len(case.pairs) / (_now(device) - begun))
        expected = torch.tensor([scores_IT[pair] for pair in pairs])
        for each, call in naive.items():
            found, seconds = call(batch)
            theirs[each].append(len(pairs) / seconds)
            differ[each] = max(differ[each], float((found - expected).abs().max()))
    for number, (each, rates) in enumerate(theirs.items()):
        figures = {
            "vlp, pairs/s": statistics.median(ours),
            "naive, pairs/s": statistics.median(rates),
            "images": len(case.candidates),
            "captions": len(case.candidates.texts),
            "largest difference of scores": differ[each],
            "their standard deviation": float(scores_IT.std()),
        }
        ratios = [one / other for one, other in zip(ours, rates, strict=True)]
        named = name if number == 0 else f"{name}/matching_alone"
        yield of_rounds(named, ratios, against=each, at_least=bar if number == 0 else None, figures=figures)


def _timed(device: str, call: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, float]:
    begun = _now(device)
    with torch.inference_mode():
        found = call(batch)
    seconds = _now(device) - begun
    return found.float().cpu(), seconds


def _now(device: str) -> float:
    wait_for(device)
    return time.perf_counter()


# ------------------------------------------------------------------------------------------------------------ models


REGIONS = {"lxmert": (36, 36), "visualbert": (10, 100)}
MATCHING = {"lxmert": "cross_relationship_score", "visualbert": "seq_relationship_logits"}
BARS = {"lxmert": 2.5, "visualbert": 1.5, "albef": 5.0}


def sharp_peer(family: str, size: Size, device: str) -> Peer:
    """Untrained weights give all pairs nearly the same score; larger ones tell them apart, so that equal means it."""
    peer = peer_of(family, size)
    peer.model.eval().to(device)
    with torch.no_grad():
        for weight in peer.model.parameters():
            if weight.ndim == 2:
                weight.mul_(2)
    return peer


class NaivePeer:
    """A class of the library in its process, which runs a batch of pairs."""

    def __init__(self, family: str, size: Size, device: str) -> None:
        self._peer, self._head, self._device = sharp_peer(family, size, device), MATCHING[family], device

    def timed(self, what: str, batch: Batch) -> tuple[Tensor, float]:
        return _timed(self._device, getattr(self, what), batch)

    def whole(self, batch: Batch) -> Tensor:
        return match_score(self._peer.model(**self._peer.inputs(batch))[self._head])

    def matching_alone(self, batch: Batch) -> Tensor:
        pooled_BH = self._peer.states(self._peer.inputs(batch))[0]
        return match_score(self._peer.model.cls.seq_relationship(pooled_BH))


def against_peer(family: str, size: Size, given: Any, folder: Path, device: str) -> Results:
    """Regions, and a class of the transformers library."""
    peer = sharp_peer(family, size, device)
    network = Network.from_pretrained(peer.converted(folder))
    class_name = f"transformers {type(peer.model).__name__}, padded batches of {BATCH}"
    del peer
    shards = region_pairs(folder / "shards", images_with(given.captions, given.images), REGIONS[family])
    case = Case(network, shards, tokenizer(folder), given.images, given.captions, device)
    apart = Apart(NaivePeer, family, size, device)
    naive = {
        class_name: partial(apart, "timed", "whole"),
        f"{class_name}, of its heads that of matching alone": partial(apart, "timed", "matching_alone"),
    }
    yield from compared(f"retrieval/{family}_{size}", case, naive, _bar(family, size), given.repeats, device)
    apart.close()


def against_itself(size: Size, given: Any, folder: Path, device: str) -> Results:
    """An image tower: each pair whole against each image once."""
    words = tokenizer(folder)
    values = read_yaml(shipped("model", f"albef_{size}"))
    values["text"]["vocab_size"] = TextEncoder(words, 64).vocab_size
    config = ModelConfig.parse(values)
    head = RetrievalTask(RetrievalConfig(head="itm"), Setting(config, TextEncoder(words, 64), 0)).heads
    network = Network(config.model_copy(update={"heads": head})).eval()
    shards = photo_pairs(folder / "shards", images_with(given.captions, given.images))
    case = Case(network, shards, words, given.images, given.captions, device)
    against = f"vlp's own network on whole pairs, {BATCH} at once"
    naive = {against: partial(_timed, device, case.whole)}
    return compared(f"retrieval/albef_{size}", case, naive, _bar("albef", size), given.repeats, device)


def _bar(family: str, size: Size) -> float | None:
    return BARS[family] if size == "base" else None


def images_with(captions: int, least: int) -> int:
    """So many images that they have the captions that are asked for."""
    return max(least, -(-captions // PER_IMAGE))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--size", choices=("tiny", "base"), default="base")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--captions", type=int, default=50)
    parser.add_argument("--families", nargs="*", default=list(BARS), help=", ".join(BARS))
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    device = device_of(given.device)
    if device == "cpu":
        keep()
    torch.manual_seed(0)
    results: list[Result] = []
    with world():
        for family in given.families:
            with TemporaryDirectory() as folder:
                made = (given.size, given, Path(folder), device)
                results += against_itself(*made) if family == "albef" else against_peer(family, *made)
    report("retrieval", __doc__, results, device=device)


if __name__ == "__main__":
    main()
