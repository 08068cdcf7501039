"""Pre-training: one or several self-supervised objectives on (image, text) pairs."""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import Self

from vlp.data.index import Block
from vlp.objectives.itm import Matching
from vlp.objectives.objective import Facts, Hidden, SelfSupervised
from vlp.objectives.region_class import RegionClass
from vlp.objectives.region_feature import RegionFeature
from vlp.objectives.regions import RegionHidingConfig, hide_regions
from vlp.objectives.registry import AnyObjectiveConfig, make_objective
from vlp.seeds import generator
from vlp.tasks.grounding import probe_ids, word_accuracies
from vlp.tasks.judge import Judge, Totals
from vlp.tasks.module import TaskModule
from vlp.tasks.task import Setting, Task, TaskConfig, check_name
from vlp.types import Batch, Example, Losses, Pair, Sample, Slot


class PretrainConfig(TaskConfig):
    """What a model is pre-trained with."""

    name: Literal["pretrain"] = "pretrain"
    objectives: dict[str, AnyObjectiveConfig] = Field(min_length=1)
    """Objectives by name; the name is the key of losses and heads."""
    combine: Literal["all", "one"] = "all"
    """Every objective in every step, or one per step, drawn by `ratio` from (seed, step), the same on all ranks. With
    one, only that objective's modality is hidden (conditional masking, Chen et al. 2020, arXiv 1909.11740, 3.1)."""
    region_hiding: RegionHidingConfig = RegionHidingConfig()
    """How regions are hidden, for all objectives that guess regions."""
    on_mismatched: bool = False
    """Whether words and regions are guessed in mismatched pairs too; they are hidden there in either case."""
    probe: tuple[str, ...] = ()
    """Words that evaluation hides one by one, to be guessed with the right image and with a wrong one."""

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        for name in self.objectives:
            check_name(name)
        if self.combine == "one" and sum(config.ratio for config in self.objectives.values()) <= 0:
            raise ValueError("combine: one needs an objective with a ratio above 0")
        if sum(config.kind == "matching" for config in self.objectives.values()) > 1:
            raise ValueError("objectives can hold one of kind matching, since a step has one set of pairs")
        return self


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
        self._only: str | None = None
        if config.probe:
            probe_ids(config.probe, setting.text)  # refuses words that cannot be probed before any work is done

    @property
    def weights(self) -> dict[str, float]:
        return {name: objective.weight for name, objective in self.config.objectives.items()}

    def only(self, name: str) -> Self:
        """This task with one objective active in every step, for evaluation."""
        task = copy(self)
        task._only = name
        return task

    def active(self, step: int) -> tuple[str, ...]:
        """Objectives of a step; a pure function of (seed, step)."""
        if self._only is not None:
            return (self._only,)
        names = tuple(self.objectives)
        if self.config.combine == "all":
            return names
        ratios = tuple(self.config.objectives[name].ratio for name in names)
        return (names[_drawn(self.setting.seed, step, ratios)],)

    def pairs(self, slot: Slot, block: Block, rng: np.random.Generator) -> tuple[Pair, ...]:
        for name in self.active(slot.step):
            objective = self.objectives[name]
            if isinstance(objective, Matching):
                return (objective.mismatch(slot.example, block, rng),)
        return super().pairs(slot, block, rng)

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: np.random.Generator, step: int
    ) -> Example:
        example = self.bare_example(image, self.text_of(text, text_number), pair.matched, rng)
        active = {name: self.objectives[name] for name in self.active(slot.step)}
        guesses_regions = any(isinstance(objective, (RegionFeature, RegionClass)) for objective in active.values())
        hidden = hide_regions(example, self.config.region_hiding, rng) if guesses_regions else Hidden(example, None)
        no_image = example.image is None and self.setting.without != "image"
        for name, objective in active.items():
            if no_image and isinstance(objective, Matching):
                continue  # a text of a text-only dataset matches nothing
            # Hide in mismatched pairs too, whether or not it is guessed there: a mask must not tell a match.
            target = objective.target(hidden, rng)
            if pair.matched or self.config.on_mismatched or isinstance(objective, Matching):
                example.targets[name] = target
        return example

    def evaluate(self, judge: Judge) -> dict[str, float]:
        """Loss and metrics of each objective alone, and the grounding probe if the config names words."""
        totals = Totals()
        for name in self.objectives:
            view = self.only(name)
            for step in judge.batches(view):
                for batch in step.micro_batches:
                    self._add(totals, name, batch, judge.run(batch, TaskModule.__call__))
        metrics = judge.averaged(totals.values)
        return metrics | (word_accuracies(self, judge, self.config.probe) if self.config.probe else {})

    def _add(self, totals: Totals, name: str, batch: Batch, losses: Losses) -> None:
        totals.add(f"loss/{name}", float(losses.sums[name]), batch.targets[name].count)
        for metric, (value, count) in losses.metrics.items():
            if metric.startswith(f"{name}_"):
                totals.add(metric, float(value), count)


@lru_cache(maxsize=4)
def _drawn(seed: int, step: int, ratios: tuple[float, ...]) -> int:
    """The number of the one objective of a step; kept for a step, since each of its examples asks."""
    shares = np.array(ratios) / sum(ratios)
    return int(generator(seed, "objective", step).choice(len(ratios), p=shares))
