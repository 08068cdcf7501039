"""Samples of the small world, one after the other: a pure function of split, seed and share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.world.balance import Balance
from data_tools.world.detector import detect
from data_tools.world.draw import draw_boxes, draw_photo
from data_tools.world.language import CAPTIONS, QUESTIONS
from data_tools.world.scene import Scene, Split, draw_scene, layouts
from vlp.seeds import generator
from vlp.types import Question, Regions

_SLACK = 2
"""With 4000 scenes about 100 questions share their words: 2 keeps a guess from words within 2 % of chance."""


@dataclass(frozen=True, slots=True)
class WorldSample:
    """One scene with all that is said and seen of it."""

    key: str
    scene: Scene
    photo: bytes
    regions: Regions
    captions: tuple[str, ...]
    questions: tuple[Question, ...]
    """A question's id is `<key>-<form>-<number>`."""


def world_samples(split: Split, samples: int, seed: int, dev_share: float) -> Iterator[WorldSample]:
    """The samples of a split; the first ones of a larger world are those of a smaller one."""
    choices = layouts(split, dev_share)
    asked, told = Balance(_SLACK), Balance()
    for number in range(samples):
        key = f"{split}-{number:06d}"
        rng = generator(seed, f"shapes/{split}", number)
        scene = draw_scene(choices, rng)
        photo = draw_photo(scene, rng)
        regions = detect(photo, draw_boxes(scene, rng))
        captions = _captions(scene, told, rng)
        yield WorldSample(key, scene, photo, regions, captions, _questions(key, scene, asked, rng))


def _captions(scene: Scene, balance: Balance, rng: np.random.Generator) -> tuple[str, ...]:
    chosen = (balance.choose(list(candidates(scene)), rng) for candidates in CAPTIONS.values())
    return tuple(caption.text for caption in chosen if caption is not None)


def _questions(key: str, scene: Scene, balance: Balance, rng: np.random.Generator) -> tuple[Question, ...]:
    questions: list[Question] = []
    for candidates, most in QUESTIONS.values():
        left = list(candidates(scene))
        for _ in range(most):
            chosen = balance.choose(left, rng) if left else None
            if chosen is None:
                break
            name = f"{key}-{chosen.form}-{len(questions)}"
            questions.append(Question(chosen.text, (chosen.answer,), name))
            left = [candidate for candidate in left if candidate.text != chosen.text]
    return tuple(questions)
