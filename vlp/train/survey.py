"""The first pass of a step: the vectors of its whole global batch, without a graph.

Contrast tells each pair from all others of the global batch, whichever rank and micro-batch they lie in. So all vectors
are made first and gathered in the order of the batch; what they say of a micro-batch's rows travels in its targets, and
the second pass is like that of any objective. Hard negatives of matching are chosen here too: each pair is made by the
rank that has its image, so a few token ids are all that is sent, and an image's states are never made twice.

With a momentum model the first pass is its own, without dropout; otherwise it draws the dropout of the second. Where
masked words are distilled, it goes on through the blocks in which text and image meet, and what it guesses of this
rank's hidden words travels likewise.

Shape suffixes: K pairs or hidden words of a micro-batch, G pairs of the global batch, P mismatched pairs of a
micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlp.distributed import World, gather_rows
from vlp.models.image import images_of
from vlp.objectives.gallery import Gallery, pulls
from vlp.objectives.itc import Contrast, MomentumConfig
from vlp.objectives.itm import Matching
from vlp.objectives.mlm import MaskedLanguage
from vlp.objectives.negatives import NONE, hard_negatives
from vlp.seeds import generator
from vlp.train.ema import MOMENTUM, EmaConfig, Mean
from vlp.train.queue import Queue
from vlp.train.rematching import Texts, rematched

if TYPE_CHECKING:
    from vlp.train.states import States
    from vlp.types import Batch, Step


def momentum_of(task: nn.Module, states: States) -> Mean | None:
    """The momentum model's weights, if the task's contrast asks for one."""
    contrast: Contrast | None = getattr(task, "contrast", None)
    if contrast is None or contrast.config.momentum is None:
        return None
    return Mean(MOMENTUM, EmaConfig(decay=contrast.config.momentum.decay, warmup=False), states)


def survey_of(task: nn.Module, momentum: Mean | None, **means: Any) -> Survey | None:
    """The survey of a task that has contrast; see `Survey` for `means`."""
    contrast: Contrast | None = getattr(task, "contrast", None)
    return None if contrast is None else Survey(task, contrast, momentum=momentum, **means)


class Survey:
    """Looks at a global batch before it is trained on; collective.

    Args:
        task: the `TaskModule` that is trained.
        contrast: its objective.
        momentum: the mean of the weights that makes the vectors; None takes the weights themselves.
        run: calls a function of the task without a graph, through the engine.
        seeded: seeds dropout as the second pass does, given the numbers of step and micro-batch.
        to_device: a batch where and as forward needs it.
    """

    def __init__(
        self,
        task: Any,
        contrast: Contrast,
        *,
        momentum: Mean | None,
        run: Callable[[Callable[[Any], tuple[Tensor, ...]]], tuple[Tensor, ...]],
        seeded: Callable[[int, int], None],
        to_device: Callable[[Batch], Batch],
        world: World,
        seed: int,
    ) -> None:
        self.name = contrast.name
        self._task, self._contrast, self.momentum = task, contrast, momentum
        self._run, self._seeded, self._to_device = run, seeded, to_device
        self._world, self._seed = world, seed
        hard = (each for each in task.objectives.values() if isinstance(each, Matching))
        self._matching = next((each for each in hard if each.config.negatives == "hard"), None)
        words = (each for each in task.objectives.values() if isinstance(each, MaskedLanguage))
        self._distilled = {each.name: each.config.alpha for each in words if each.config.alpha and momentum}
        config = contrast.config
        size = config.momentum.queue if config.momentum else 0
        self.queue = Queue(size, config.width, world.device)
        self._last: Gallery | None = None
        self._form, self._pooler = images_of(task.model.config.image).form, task.model.config.pooler

    def look(self, step: Step, counts: Mapping[str, float]) -> list[Batch]:
        """The step's micro-batches, with what the global batch says to each.

        Args:
            counts: of each objective's targets in the global batch; without any that it tells, there is nothing to see.
        """
        distilled = [name for name in self._distilled if counts[name] > 0]
        if not distilled and counts[self.name] == 0:
            return step.micro_batches
        seen, guesses = self._seen(step, distilled)
        places = [batch.targets[self.name].values["place"].to(seen.places_G) for batch in step.micro_batches]
        rows = [torch.searchsorted(seen.places_G, place_K) for place_K in places]
        surveys = self._surveys(step.number, seen.gallery, rows)
        self._last = seen.gallery
        batches = [_told(b, self.name, survey) for b, survey in zip(step.micro_batches, surveys, strict=True)]
        for name, teachers in guesses.items():
            alpha = self._shared(self._distilled[name] * self._ramp(step.number))
            told = zip(batches, teachers, strict=True)
            batches = [_told(b, name, {"teacher": teacher_KV, "alpha": alpha}) for b, teacher_KV in told]
        return self._rematched(step.number, batches, rows, seen) if self._matching else batches

    def end(self, applied: bool) -> None:
        """After a step: if it was applied, its vectors go into the queue."""
        if applied and self.momentum is not None and self._last is not None:
            self.queue.put(self._last)
        self._last = None

    def _seen(self, step: Step, distilled: list[str]) -> tuple[_Seen, dict[str, list[Tensor]]]:
        """The vectors of the global batch; and what the momentum model guesses, by objective and micro-batch."""
        vectors, numbers = [], []
        guesses: dict[str, list[Tensor]] = {name: [] for name in distilled}
        with self._momentum_weights():
            for index, batch in enumerate(map(self._to_device, step.micro_batches)):
                self._seeded(step.number, index)
                own, *others = self._run(partial(_looked_at, batch=batch, names=[self.name, *distilled]))
                vectors.append(own)
                for name, scores_KV in zip(distilled, others, strict=True):
                    guesses[name].append(scores_KV)
                values = batch.targets[self.name].values
                numbers.append(torch.stack([values["place"], values["image"]], dim=1))
        vectors_G, numbers_G = (gather_rows(torch.cat(own), self._world) for own in (vectors, numbers))
        order_G = numbers_G[:, 0].argsort()
        text_GD, image_GD, scale_G1 = self._contrast.parts(vectors_G[order_G])
        places_G, images_G = numbers_G[order_G].unbind(1)
        scores_GG = text_GD @ image_GD.T if self._matching else text_GD[:0]
        if self.momentum is not None:
            text_GD = text_GD / scale_G1  # the temperature is that of the weights which are trained
        gallery = Gallery(text_GD, image_GD, images_G)
        return _Seen(gallery, places_G.contiguous(), order_G, scores_GG), guesses

    @contextmanager
    def _momentum_weights(self) -> Iterator[None]:
        if self.momentum is None:
            yield
            return
        with self.momentum.in_place():
            self._task.eval()
            try:
                yield
            finally:
                self._task.train()

    def _surveys(self, number: int, gallery: Gallery, rows: list[Tensor]) -> list[dict[str, Tensor]]:
        if self.momentum is None:
            found = pulls(gallery)
            values = {
                "loss": found.loss_G,
                "right": found.right_G,
                "text_pull": found.text_GD,
                "image_pull": found.image_GD,
            }
            return [{name: value_G[rows_K] for name, value_G in values.items()} for rows_K in rows]
        past = self.queue.gallery
        shared = {
            "text_gallery": torch.cat([gallery.text_GD, past.text_GD]),
            "image_gallery": torch.cat([gallery.image_GD, past.image_GD]),
            "images": torch.cat([gallery.images_G, past.images_G]),
            "alpha": self._shared(self._momentum_config.alpha * self._ramp(number)),
        }
        return [{**shared, "rows": rows_K} for rows_K in rows]

    @property
    def _momentum_config(self) -> MomentumConfig:
        config = self._contrast.config.momentum
        assert config is not None
        return config

    def _ramp(self, number: int) -> float:
        """What the momentum model's share of targets has risen to, of 1."""
        ramp = self._momentum_config.ramp
        return min(1.0, number / ramp) if ramp else 1.0

    def _shared(self, value: float) -> Tensor:
        return torch.tensor(value, device=self._world.device)

    def _rematched(self, number: int, batches: list[Batch], rows: list[Tensor], seen: _Seen) -> list[Batch]:
        """The micro-batches with the mismatched pairs that their images are part of."""
        assert self._matching is not None
        pairs = self._mismatched(number, seen)
        texts = Texts.gathered(batches, self.name, seen.order_G, self._world)
        result = []
        for batch, rows_K in zip(batches, rows, strict=True):
            found = rematched(batch, self.name, rows_K.tolist(), pairs, texts, self._form, self._pooler)
            survey = {"rows": found.rows_P, "matched": found.matched_P}
            result.append(replace(_told(batch, self._matching.name, survey), rematched=found.pairs))
        return result

    def _mismatched(self, number: int, seen: _Seen) -> list[tuple[int, int]]:
        """Rows of image and text of all mismatched pairs: each text with another image, and each image likewise."""
        places_G = seen.places_G
        size = int(places_G[-1]) + 1 if len(places_G) else 0
        draws = torch.from_numpy(generator(self._seed, "hard negatives", number).random((size, 2)))
        draws_G2 = draws.to(places_G.device)[places_G]
        image_of_G, text_of_G = hard_negatives(seen.scores_GG, seen.gallery.images_G, draws_G2)
        pairs = [*zip(image_of_G.tolist(), count(), strict=False), *zip(count(), text_of_G.tolist(), strict=False)]
        return [(image, text) for image, text in pairs if NONE not in (image, text)]


def _looked_at(task: Any, batch: Batch, names: list[str]) -> tuple[Tensor, ...]:
    """What the heads make of a micro-batch, contrast's first; alone, it needs no block in which text and image meet."""
    return task.guesses(batch, names) if len(names) > 1 else (task.vectors(batch),)


@dataclass(frozen=True)
class _Seen:
    """A global batch in its order."""

    gallery: Gallery
    """Texts' vectors are divided by the temperature, but for those of a momentum model."""
    places_G: Tensor
    order_G: Tensor
    """int64: for each pair its number, counted rank after rank."""
    scores_GG: Tensor
    """Of each text (row) and image (column), where hard negatives are asked for."""


def _told(batch: Batch, name: str, survey: dict[str, Tensor]) -> Batch:
    return replace(batch, targets={**batch.targets, name: replace(batch.targets[name], survey=survey)})
