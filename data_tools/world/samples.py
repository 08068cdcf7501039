"""Samples of the small world, one after the other: a pure function of split, seed and share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.pool import Pool, Tick
from data_tools.world.balance import Balance
from data_tools.world.detector import detect
from data_tools.world.draw import draw_boxes, draw_photo
from data_tools.world.language import CAPTIONS, QUESTIONS
from data_tools.world.scene import Layout, Scene, Split, draw_scene, layouts
from vlp.seeds import generator
from vlp.types import Question, Regions

_SLACK = 2
"""With 4000 scenes about 100 questions share their words: 2 keeps a guess from words within 2 % of chance."""
_JOB = 50
"""Scenes drawn by a process at a time."""


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


@dataclass(frozen=True, slots=True)
class _World:
    """What all scenes of a split have in common."""

    split: Split
    seed: int
    choices: list[list[Layout]]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A scene as it is seen; what is said of it depends on what was said of those before."""

    key: str
    scene: Scene
    photo: bytes
    regions: Regions
    rng: np.random.Generator
    """Goes on with the words."""


def world_samples(
    split: Split,
    samples: int,
    seed: int,
    dev_share: float,
    workers: int = 1,
    watch: Callable[[int], None] | None = None,
) -> Iterator[WorldSample]:
    """The samples of a split; the first ones of a larger world are those of a smaller one.

    Args:
        workers: processes that draw; the samples do not depend on it.
        watch: told from time to time how many scenes are drawn.
    """
    asked, told = Balance(_SLACK), Balance()
    jobs = [range(first, min(first + _JOB, samples)) for first in range(0, samples, _JOB)]
    with Pool(_World(split, seed, layouts(split, dev_share)), workers, watch or _nobody) as pool:
        for part in pool.ordered(_draw, jobs):
            for drawn in part:
                captions = _captions(drawn.scene, told, drawn.rng)
                questions = _questions(drawn.key, drawn.scene, asked, drawn.rng)
                yield WorldSample(drawn.key, drawn.scene, drawn.photo, drawn.regions, captions, questions)


def _nobody(drawn: int) -> None:
    """Watches nothing."""


def _draw(world: _World, numbers: range, tick: Tick) -> list[_Drawn]:
    result = []
    for number in numbers:
        rng = generator(world.seed, f"shapes/{world.split}", number)
        scene = draw_scene(world.choices, rng)
        photo = draw_photo(scene, rng)
        regions = detect(photo, draw_boxes(scene, rng))
        result.append(_Drawn(f"{world.split}-{number:06d}", scene, photo, regions, rng))
        tick()
    return result


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
