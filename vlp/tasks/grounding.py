"""Does the model look? A word is hidden and guessed, once with the right image and once with a wrong one.

A model that has learned the language alone guesses equally well with both; the gap is what it takes from the image.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from vlp.data.index import Block
from vlp.data.text import TextEncoder
from vlp.errors import ConfigError
from vlp.objectives.itm import other_sample
from vlp.objectives.mlm import MaskedLanguage
from vlp.seeds import Draw
from vlp.tasks.judge import Judge, Totals
from vlp.tasks.task import Task
from vlp.types import Batch, Example, Pair, Sample, Slot, Target

if TYPE_CHECKING:
    from vlp.tasks.module import TaskModule
    from vlp.tasks.pretrain import PretrainTask


class _Probe(Task):
    """Hides the first of the words that a text holds; texts with none of them give no target."""

    def __init__(self, task: PretrainTask, objective: MaskedLanguage, words: Collection[str], wrong: bool) -> None:
        super().__init__(task.config, task.setting)
        self.objectives = {objective.name: objective}
        self.objective = objective
        self.wrong = wrong
        self.word_ids = probe_ids(words, task.setting.text)

    @property
    def draws_pairs(self) -> bool:
        return True

    def pairs(self, slot: Slot, block: Block, rng: Draw) -> tuple[Pair, ...]:
        sample = int(block.sample_E[slot.example])
        other = other_sample(sample, block, rng) if self.wrong else None
        return (Pair(sample, slot.example) if other is None else Pair(other, slot.example, matched=False),)

    def example(
        self, slot: Slot, pair: Pair, image: Sample, text: Sample, text_number: int, rng: Draw, step: int
    ) -> Example:
        example = self.bare_example(image, self.text_of(text, text_number), pair.matched)
        places = np.flatnonzero(np.isin(example.token_ids_T, self.word_ids))[:1]
        if pair.matched is not self.wrong:
            tokens_T = example.token_ids_T.copy()
            example.targets[self.objective.name] = Target(places, {"token": tokens_T[places]})
            tokens_T[places] = self.objective.mask_id
            example.token_ids_T = tokens_T
        return example

    def evaluate(self, judge: Judge) -> dict[str, float]:
        totals = Totals()
        name = "word_accuracy_wrong_image" if self.wrong else "word_accuracy"
        for step in judge.batches(self):
            for batch in step.micro_batches:
                right = judge.run(batch, self._right)
                totals.add(name, right, len(batch.targets[self.objective.name].positions_K))
        return judge.averaged(totals.values)

    def _right(self, module: TaskModule, batch: Batch) -> float:
        scores_KV = module.scores(batch, self.objective.name)
        return float((scores_KV.argmax(-1) == batch.targets[self.objective.name].values["token"]).sum())


def probe_ids(words: Collection[str], text: TextEncoder) -> list[int]:
    """The tokens of the words that are one token each.

    Raises:
        ConfigError: none of them is, so there is nothing to probe.
    """
    encoded = map(text.encode, words)
    # An unknown word is one token too, but [UNK] stands for any word.
    found = [int(ids[1]) for ids, special, _ in encoded if len(ids) == 3 and not special[1]]
    if not found:
        raise ConfigError(f"task.probe: none of '{', '.join(words)}' is a token of the tokenizer; give words that are")
    return found


def word_accuracies(task: PretrainTask, judge: Judge, words: Collection[str]) -> dict[str, float]:
    """`word_accuracy` with the right image and `word_accuracy_wrong_image`, over the texts that hold one of the words.

    Words that are not one token of the vocabulary are left out.
    """
    for objective in task.objectives.values():
        if isinstance(objective, MaskedLanguage):
            right, wrong = (_Probe(task, objective, words, wrong) for wrong in (False, True))
            return right.evaluate(judge) | wrong.evaluate(judge)
    return {}
