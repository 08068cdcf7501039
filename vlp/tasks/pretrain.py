"""Pre-training: one or several self-supervised objectives on (image, text) pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.data.batch import collate
from vlp.data.index import Block
from vlp.models.halves import image_met
from vlp.models.image import RegionSource
from vlp.objectives.itc import Contrast
from vlp.objectives.itm import Matching, has_image
from vlp.objectives.mlm import MaskedLanguage
from vlp.objectives.negatives import MOST
from vlp.objectives.objective import Facts, Hidden, SelfSupervised, SelfSupervisedConfig
from vlp.objectives.patch_feature import source_grid
from vlp.objectives.patches import PatchHidingConfig, hide_patches
from vlp.objectives.prefix import PrefixLanguage
from vlp.objectives.region_contrast import RegionContrast
from vlp.objectives.regions import RegionHidingConfig, hide_regions, spare_regions
from vlp.objectives.registry import AnyObjectiveConfig, make_objective
from vlp.seeds import Draw, Draws, generator
from vlp.tasks.captioning import exact_matches
from vlp.tasks.contrasting import contrast_metrics
from vlp.tasks.grounding import probe_ids, word_accuracies
from vlp.tasks.judge import Judge, Totals
from vlp.tasks.module import TaskModule
from vlp.tasks.task import Setting, Task, TaskConfig, check_name
from vlp.types import Asked, Batch, Example, Loan, Losses, Origin, Pair, Sample, Slot, Stream

_HIDING_WORDS = ("masked_language", "prefix_language")


class PretrainConfig(TaskConfig):
    """What a model is pre-trained with."""

    name: Literal["pretrain"] = "pretrain"
    objectives: dict[str, AnyObjectiveConfig] = Field(min_length=1)
    """Objectives by name; the name is the key of losses and heads."""
    combine: Literal["all", "one"] = "all"
    """Every objective in every step, or one per step, drawn by `ratio` from (seed, step), the same on all ranks."""
    masking: Literal["conditional", "joint"] | None = None
    """Hide one modality of an example at a time (Chen et al. 2020, arXiv 1909.11740, 3.1), or words and regions
    together. With `combine: one` conditional hides that of the step's objective, with `all` it is drawn for each
    example, and the other modality has no target there. Null is conditional with one and joint with all."""
    region_hiding: RegionHidingConfig = RegionHidingConfig()
    """How regions are hidden, for all objectives that guess regions."""
    patch_hiding: PatchHidingConfig = PatchHidingConfig()
    """How image tokens of a pixel model are hidden, likewise."""
    on_mismatched: bool = False
    """Whether words and regions are guessed in mismatched pairs too; they are hidden there in either case. Objectives
    that tell or use a mismatch (matching, word-region alignment) stand in all pairs anyway."""
    probe: tuple[str, ...] = ()
    """Words that evaluation hides one by one, to be guessed with the right image and with a wrong one."""
    captioned_images: int = Field(200, ge=0)
    """With an objective of kind prefix_language, evaluation writes captions of so many images (the first)."""

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        for name in self.objectives:
            check_name(name)
        ratios = [config.ratio for config in self.objectives.values() if config.along_with is None]
        if self.combine == "one" and sum(ratios) <= 0:
            raise ValueError("combine: one needs an objective with a ratio above 0")
        first = [config for config in self.objectives.values() if not config.from_step and config.along_with is None]
        if not any(config.ratio > 0 or self.combine == "all" for config in first):
            raise ValueError("objectives need one that begins at once; set its from_step to 0")
        if sum(config.kind == "matching" for config in self.objectives.values()) > 1:
            raise ValueError("objectives can hold one of kind matching, since a step has one set of pairs")
        hiding = [name for name, config in self.objectives.items() if config.kind in _HIDING_WORDS]
        if len(hiding) > 1 and (self.combine == "all" or self.hides_both):
            raise ValueError(
                f"objectives.{hiding[1]} hides words, and so does {hiding[0]}, so a step can have one of them; say "
                "combine: one, and masking: conditional"
            )
        asking = [name for name, config in self.objectives.items() if config.kind == "question_answering"]
        if asking and self.texts == "captions":
            raise ValueError(f"objectives.{asking[0]} needs questions; say texts: both, or texts: questions")
        own = [name for name, config in self.objectives.items() if config.along_with is None]
        for name, config in self.objectives.items():
            if config.along_with not in (None, *own):
                raise ValueError(
                    f"objectives.{name}.along_with: '{config.along_with}' is no objective with steps of its own"
                )
        self._check_contrast()
        return self

    def _check_contrast(self) -> None:
        contrasts = {name: config for name, config in self.objectives.items() if config.kind == "contrast"}
        if len(contrasts) > 1:
            raise ValueError("objectives can hold one of kind contrast, since a step has one first pass")
        slow = {name: config for name, config in contrasts.items() if config.momentum}
        for name, config in self.objectives.items():
            if config.kind == "masked_language" and config.alpha and not self._stands_with(config, slow):
                raise ValueError(
                    f"objectives.{name}.alpha: {config.alpha:g} is the share of a momentum model's guesses in the same "
                    "step: add an objective of kind contrast with momentum that begins no later, and say combine: all "
                    "or along_with its name"
                )
            if config.kind != "matching" or config.negatives == "block":
                continue
            if not self._stands_with(config, contrasts):
                raise ValueError(
                    f"objectives.{name}.negatives: hard ones are found by what contrast makes of the same step: add an "
                    "objective of kind contrast that begins no later, and say combine: all or along_with its name"
                )

    def _stands_with(self, config: SelfSupervisedConfig, contrasts: Mapping[str, SelfSupervisedConfig]) -> bool:
        """Whether one of the contrasts stands in every step of an objective."""
        together = self.combine == "all" or config.along_with in contrasts
        return bool(contrasts) and together and all(c.from_step <= config.from_step for c in contrasts.values())

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        asking = {name: own for name, own in self.objectives.items() if own.kind == "question_answering"}
        return {name: own.answers for name, own in asking.items() if own.answers != "auto"}

    @property
    def hides_both(self) -> bool:
        """Whether words and regions of one example are hidden together."""
        return (self.masking or ("joint" if self.combine == "all" else "conditional")) == "joint"


@dataclass(frozen=True, slots=True)
class Stage:
    """What the examples of a step have in common."""

    active: tuple[str, ...]
    """Its objectives."""
    hiding: frozenset[Stream]
    """The modalities of which something may be hidden."""
    apart: bool
    """Whether it is of one at a time, drawn for each example."""
    plain: bool
    """Whether contrast reads texts whose words may be hidden."""
    matching: Matching | None
    """The one of its objectives that is about mismatched pairs."""
    contrasting: tuple[RegionContrast, ...]
    """Those of its objectives that read regions of other samples."""
    lends: bool
    """Whether its examples are lent regions of other samples."""


class PretrainTask(Task):
    """Hides, mismatches, guesses."""

    samples_tokens = True

    def __init__(self, config: PretrainConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.config = config
        facts = Facts(setting.model, setting.text)
        self.objectives: dict[str, SelfSupervised] = {
            name: make_objective(name, own, facts) for name, own in config.objectives.items()
        }
        source = setting.model.image.source
        self._prefix = 0 if isinstance(source, RegionSource) else source_grid(source).prefix
        self._only: str | None = None
        self._last: tuple[int, Stage] | None = None
        self._met = image_met(setting.model)
        if config.probe:
            probe_ids(config.probe, setting.text)  # refuses words that cannot be probed before any work is done

    @property
    def weights(self) -> dict[str, float]:
        return {name: objective.weight for name, objective in self.config.objectives.items()}

    def only(self, name: str) -> Self:
        """This task with one objective active in every step, for evaluation."""
        task = copy(self)
        task._only, task._last = name, None
        return task

    def active(self, step: int) -> tuple[str, ...]:
        """Objectives of a step; a pure function of (seed, step)."""
        if self._only is not None:
            return self._with_its_pairs(self._only)
        names = tuple(name for name, own in self.config.objectives.items() if own.from_step <= step)
        if self.config.combine == "all":
            return names
        configs = self.config.objectives
        own = {name: configs[name].ratio for name in names if configs[name].along_with is None}
        drawn = tuple(own)[_drawn(self.setting.seed, step, tuple(own.values()))]
        return tuple(name for name in names if drawn in (name, configs[name].along_with))

    def _with_its_pairs(self, name: str) -> tuple[str, ...]:
        """An objective, and the one whose pairs it is about: mismatched ones are drawn by matching."""
        leader = self.config.objectives[name].along_with
        if leader is None and self.objectives[name].pairs == "all":
            leader = next((other for other, each in self.objectives.items() if isinstance(each, Matching)), None)
        return (name,) if leader in (None, name) else (str(leader), name)

    @property
    def draws_pairs(self) -> bool:
        return True

    def pairs(self, slot: Slot, block: Block, rng: Draw) -> tuple[Pair, ...]:
        stage = self._stage(slot.step)
        matching = stage.matching
        drawn = matching is not None and bool(self._only or matching.config.negatives == "block")
        if matching is not None and drawn:
            pair = matching.mismatch(slot.example, block, rng)
        else:
            (pair,) = super().pairs(slot, block, rng)
        if loans := self._loans(stage, pair, block, rng):
            pair = Pair(pair.image, pair.text, pair.matched, pair.second, loans)
        if matching is not None and not drawn and has_image(pair.image, block):
            pair = self._met_often(pair, stage)
        return (pair,)

    def _met_often(self, pair: Pair, stage: Stage) -> Pair:
        """A pair in a step with hard negatives, whose image meets more texts than its own.

        It meets the one that it draws and at most `MOST` that draw it, and where words are hidden its own as that was.
        The model goes over each of these texts, and again over the image, from where text and image meet.
        """
        texts = 1 + MOST + int(stage.plain)
        return pair._replace(text_passes=1.0 + texts, image_passes=1 + texts * self._met)

    def _loans(self, stage: Stage, pair: Pair, block: Block, rng: Draw) -> tuple[Loan, ...]:
        """Regions of other samples, where some are to stand in for hidden ones or to be told from them."""
        if not (stage.lends and block.regions_S.item(pair.image)):
            return ()
        loans = spare_regions(pair.image, block, self.config.region_hiding, rng)
        for objective in stage.contrasting:
            loans += objective.loans(pair.image, block, rng)
        return loans

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: Draw, step: int
    ) -> Example:
        """The pair as it is; `collate` hides and asks."""
        example = self.bare_example(image, self.text_of(text, text_number), pair.matched, rng, text.second)
        question = self.question_of(text, text_number)
        example.origin = Origin(rng.key, slot.index, (slot.dataset, image.key), question, image.lent_KD)
        return example

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        every = [example for group in examples for example in group]
        batch = self.narrowed(self.batch_of(every, self.ask(every, step)), self._stage(step).active)
        if not self._stage(step).plain:
            return batch
        return replace(batch, plain=collate([_plain(example) for example in every], self.images.form, {}))

    def ask(self, examples: Sequence[Example], step: int) -> dict[str, Asked]:
        """Hide something of each example of this task and ask for it: what each objective asks of all of them, if it
        asks anything. What is drawn, is drawn by an example's own key.

        One thing is done for all examples before the next is: numpy then goes once over the numbers of all, and a
        processor need not fetch the code of every thing anew for each.
        """
        stage = self._stage(step)
        made = [(row, example, example.origin) for row, example in enumerate(examples) if example.origin is not None]
        hidden = [Hidden(example, o.question, o.place, o.image, o.lent_KD) for _, example, o in made]
        draws, rows_B = Draws([origin.key for _, _, origin in made]), np.array([row for row, _, _ in made], np.int64)
        for _, example, _ in made:
            example.origin = None
            if stage.plain:
                example.plain_T = example.token_ids_T
        hiding, asking = _hiding(stage, draws), self._asking([example for _, example, _ in made])
        seen = hiding["image"].nonzero()[0]
        self._hide(_some(hidden, seen), draws.of(seen).apart("image"))
        asked = {}
        for name, objective in self.objectives.items():
            # Words are hidden in mismatched pairs too, guessed there or not: a mask must not tell a match.
            asks_B = asking[objective.pairs] & (name in stage.active)
            hides = objective.hides == "text" and (name in stage.active or isinstance(objective, MaskedLanguage))
            which = (hiding[objective.hides] & (asks_B | hides)).nonzero()[0]
            if not len(which):
                continue
            # An objective may be called "image", and draws apart from what is hidden all the same.
            found = objective.targets(_some(hidden, which), draws.of(which).apart(f"objective {name}"))
            asks = asks_B[which]
            if asks.any():
                kept = found if asks.all() else found.only(asks)
                asked[name] = kept.among(rows_B[which[asks]], len(examples))
        return asked

    def _hide(self, hidden: Sequence[Hidden], draws: Draws) -> None:
        """Choose what is hidden of images."""
        if self.images.wants_regions:
            hide_regions(hidden, self.config.region_hiding, draws)
        else:
            hide_patches(hidden, self.config.patch_hiding, self._prefix, draws)

    def _stage(self, step: int) -> Stage:
        """What the examples of a step have in common; kept for a step, since each of its pairs asks."""
        last = self._last
        if last is None or last[0] != step:
            self._last = last = step, self._staged(self.active(step))
        return last[1]

    def _staged(self, active: tuple[str, ...]) -> Stage:
        hiding = {hides for name in active if (hides := self.objectives[name].hides)}
        both = self.config.hides_both and self._only is None
        if hiding and both:
            hiding = {hides for objective in self.objectives.values() if (hides := objective.hides)}
        objectives = [self.objectives[name] for name in active]
        contrasts = any(isinstance(each, Contrast) for each in objectives)
        contrasting = tuple(each for each in objectives if isinstance(each, RegionContrast))
        replaces = self.config.region_hiding.random > 0
        return Stage(
            active,
            frozenset(hiding),
            apart=not both,
            plain="text" in hiding and contrasts,
            matching=next((each for each in objectives if isinstance(each, Matching)), None),
            contrasting=contrasting,
            lends=self.wants_regions and "image" in hiding and (replaces or len(contrasting) > 0),
        )

    def _asking(self, examples: Sequence[Example]) -> dict[Literal["all", "matched"] | None, NDArray[np.bool_]]:
        """Which examples an objective has a target in, by the pairs that it is about."""
        matched_B = np.array([example.matched for example in examples], np.bool_)
        without = self.setting.without == "image"
        paired_B = np.array([without or example.image is not None for example in examples], np.bool_)
        return {None: matched_B | self.config.on_mismatched, "matched": matched_B & paired_B, "all": paired_B}

    def evaluate(self, judge: Judge) -> dict[str, float]:
        """Loss and metrics of each objective alone, and the grounding probe if the config names words."""
        totals = Totals()
        recalls: dict[str, float] = {}
        for name, objective in self.objectives.items():
            view = self.only(name)
            if isinstance(objective, Contrast):
                recalls |= contrast_metrics(view, objective, judge)
                continue
            for step in judge.batches(view):
                for batch in step.micro_batches:
                    self._add(totals, name, batch, judge.run(batch, TaskModule.__call__))
        metrics = judge.averaged(totals.values) | recalls
        for objective in self.objectives.values():
            if isinstance(objective, PrefixLanguage) and self.config.captioned_images:
                metrics |= exact_matches(self, objective, judge, self.config.captioned_images)
        return metrics | (word_accuracies(self, judge, self.config.probe) if self.config.probe else {})

    def _add(self, totals: Totals, name: str, batch: Batch, losses: Losses) -> None:
        totals.add(f"loss/{name}", float(losses.sums[name]), batch.targets[name].count)
        for metric, (value, count) in losses.metrics.items():
            if metric.startswith(f"{name}_"):
                totals.add(metric, float(value), float(count))


def _some(hidden: Sequence[Hidden], rows: NDArray[np.int64]) -> Sequence[Hidden]:
    """Those of some rows, ascending; where these are all of them, no time is spent."""
    return hidden if len(rows) == len(hidden) else [hidden[row] for row in rows.tolist()]


def _hiding(stage: Stage, draws: Draws) -> dict[Stream | None, NDArray[np.bool_]]:
    """The examples of which something of a modality may be hidden; under None, of which nothing need be."""
    all_B = np.ones(len(draws), np.bool_)
    text_B, image_B = all_B & ("text" in stage.hiding), all_B & ("image" in stage.hiding)
    if stage.apart and len(stage.hiding) > 1:
        text_B = draws.apart("stream").uniform(np.ones(len(draws), np.int64)) < 0.5
        image_B = ~text_B
    return {None: all_B, "text": text_B, "image": image_B}


def _plain(example: Example) -> Example:
    """Its text before words were hidden, alone."""
    plain_T = example.token_ids_T if example.plain_T is None else example.plain_T
    return replace(example, token_ids_T=plain_T, image=None, targets={}, causal=False)


def _drawn(seed: int, step: int, ratios: tuple[float, ...]) -> int:
    """The number of the one objective of a step."""
    shares = np.array(ratios) / sum(ratios)
    return int(generator(seed, "objective", step).choice(len(ratios), p=shares))
