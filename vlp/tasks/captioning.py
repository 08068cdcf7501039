"""Captions written word by word, and how many of them are right.

Shape suffixes: B images of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from vlp.data.batch import with_texts
from vlp.objectives.prefix import PrefixLanguage
from vlp.tasks.candidates import Candidates, find_candidates, read_image
from vlp.tasks.judge import Judge
from vlp.types import Batch, Example, Sample

if TYPE_CHECKING:
    from vlp.tasks.module import TaskModule
    from vlp.tasks.task import Task


def exact_matches(task: Task, objective: PrefixLanguage, judge: Judge, most: int) -> dict[str, float]:
    """`caption_exact_match`: share of the first `most` images whose caption is, token by token, one of theirs."""
    found = find_candidates(task, judge.dataset, most)
    wanted: dict[int, set[tuple[int, ...]]] = {}
    for text, image in zip(found.texts, found.image_T, strict=True):
        wanted.setdefault(image, set()).add(_words(task, text))
    own = range(judge.world.rank, len(found), judge.world.size)
    right = sum(words in wanted[image] for image, words in zip(own, write(task, objective, judge, found), strict=True))
    return judge.averaged({"caption_exact_match": (float(right), float(len(own)))})


def write(task: Task, objective: PrefixLanguage, judge: Judge, found: Candidates) -> list[tuple[int, ...]]:
    """The captions of this rank's share of the images (every `world.size`-th), as tokens; the likeliest token each
    time. Collective."""
    own = range(judge.world.rank, len(found), judge.world.size)
    index = judge.dataset.index
    longest = max(task.image_tokens(int(index.table(shard).regions_S[row])) for shard, row in found.rows)
    size = max(1, judge.micro_tokens // (longest + objective.text.max_length))
    written: list[tuple[int, ...]] = []
    for start in range(0, -(-len(found) // judge.world.size), size):  # equally many batches on every rank
        places = [found.rows[number] for number in own[start : start + size]]
        written += _write(task, objective, judge, [read_image(task, judge.dataset, place) for place in places])
    return written


def _write(task: Task, objective: PrefixLanguage, judge: Judge, samples: Sequence[Sample]) -> list[tuple[int, ...]]:
    """The captions of one batch; every rank runs until all are done."""
    text = objective.text
    shown = [replace(task.bare_example(sample, ""), token_ids_T=np.array([text.cls_id])) for sample in samples]
    batch = task.collate([[objective.asking(example)] for example in shown], 0)
    allowed_V = torch.zeros(text.vocab_size, dtype=torch.bool)
    allowed_V[torch.from_numpy(np.append(text.random_ids, text.sep_id))] = True
    words: list[list[int]] = [[] for _ in samples]
    done = [False] * len(samples)
    for _ in range(text.max_length - 1):
        asked = [objective.asking(_begun(example, own)) for example, own in zip(shown, words, strict=True)]
        batch = with_texts(batch, asked, task.forms)
        for number, token in enumerate(judge.run(batch, _next(objective, allowed_V))):
            done[number] = done[number] or token == text.sep_id
            if not done[number]:
                words[number].append(token)
        if all(judge.shared(all(done))):
            break
    return [tuple(each[: text.max_length - 2]) for each in words]


def _begun(example: Example, words: list[int]) -> Example:
    return replace(example, token_ids_T=np.array([*example.token_ids_T, *words], np.int64))


def _next(objective: PrefixLanguage, allowed_V: torch.Tensor) -> Callable[[TaskModule, Batch], list[int]]:
    """Gives the likeliest of the allowed tokens for each image."""

    def call(module: TaskModule, batch: Batch) -> list[int]:
        scores_BV = module.scores(batch, objective.name)
        best: list[int] = scores_BV.masked_fill(~allowed_V.to(scores_BV.device), float("-inf")).argmax(-1).tolist()
        return best

    return call


def _words(task: Task, text: str) -> tuple[int, ...]:
    tokens_T: NDArray[np.int64] = task.setting.text.encode(text)[0]
    return tuple(tokens_T[1:-1].tolist())
