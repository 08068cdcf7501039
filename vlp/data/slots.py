"""Slots into examples: the pairs that a task draws, their lengths from the tables, their samples read and prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlp.data.augment import AugmentConfig, draw_view
from vlp.data.dataset import Dataset
from vlp.data.index import Block, Texts
from vlp.data.recent import Recent
from vlp.data.samples import Fault
from vlp.data.shards import BadSample
from vlp.seeds import Draw, derive, derive_each, generator
from vlp.types import Batch, Example, Pair, Sample, Slot

_RECENT_SAMPLES = 8

ImageTokens = Callable[[int], int]
"""Image tokens that the model makes of a sample with so many regions (`vlp.data.image`: `.tokens`)."""


class Preparer(Protocol):
    """What a task does to its data; pure functions of their arguments, run in loader workers."""

    @property
    def wants_image(self) -> bool:
        """Whether `example` needs the photo's bytes."""

    @property
    def wants_regions(self) -> bool:
        """Whether `example` needs the regions."""

    @property
    def draws_pairs(self) -> bool:
        """Whether slots have other pairs than their own image and text; where not, `pairs` is not asked."""

    def pairs(self, slot: Slot, block: Block, rng: Draw) -> tuple[Pair, ...]:
        """The pairs of one slot, at least one; they stay in one micro-batch, in this order."""

    def shown(self, image: Sample, rng: Draw) -> Sample:
        """The sample with its image as the model takes it (`Sample.shown`); `rng` then goes to `example`.

        Raises:
            Fault: the image cannot be used; another example takes the slot.
        """

    def example(
        self,
        slot: Slot,
        pair: Pair,
        image: Sample,
        text: Sample,
        text_number: int,
        rng: Draw,
        step: int,
    ) -> Example:
        """One pair, prepared for the model. An empty `Example.id` is filled in by the caller.

        Raises:
            Fault: the image or the text cannot be used; another example takes the slot.
        """

    def collate(self, examples: list[list[Example]], step: int) -> Batch:
        """A micro-batch from the examples of each slot; no slots at all give zero rows."""


class Places(Protocol):
    """Where slots lie: an `Order`, or the plain sequence of an evaluation."""

    @property
    def seed(self) -> int: ...

    def block_shards(self, slot: Slot) -> tuple[int, ...]: ...


class OpenBlock:
    """The tables of a block, and what is known of its examples before any is read.

    Args:
        seed: of the dataset's epoch.
    """

    def __init__(self, tables: Block, cut_E: NDArray[np.bool_], image_tokens_S: NDArray[np.int64], seed: int) -> None:
        self.tables = tables
        self.cut_E = cut_E
        """True where the text is longer than the model takes."""
        self.image_tokens_S = image_tokens_S
        shard_E = tables.shard_S[tables.sample_E]
        starts_P = np.flatnonzero(np.diff(shard_E, prepend=-1))
        lengths_P = np.diff(starts_P, append=len(shard_E))
        self.keys_E = derive_each(seed, shard_E, np.arange(len(shard_E)) - starts_P.repeat(lengths_P))
        """What each example's numbers are drawn from (`vlp.seeds`): what it is, shard and place in the shard, not where
        it stands. Groups, ranks and batch size do not move a mask."""


@dataclass(slots=True)
class ReadPair:
    """A pair with its samples, ready to be prepared."""

    pair: Pair
    image: Sample
    text: Sample
    text_number: int
    rng: Draw
    id: str
    """Of the example, unless its task gives it another."""


class SlotReader:
    """Slots into examples."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        places: Places,
        preparer: Preparer,
        image_tokens: ImageTokens,
        open_blocks: int,
        augment: AugmentConfig | None = None,
    ) -> None:
        self._datasets = datasets
        self._places = places
        self._preparer = preparer
        self._image_tokens = image_tokens
        self._blocks = Recent(self._open, open_blocks)
        # Evaluation takes the texts of an image one after the other.
        self._samples = Recent(self._read_sample, _RECENT_SAMPLES)
        self._last: tuple[tuple[int, int, int, int], OpenBlock] | None = None
        self._augment = augment

    def block(self, slot: Slot) -> OpenBlock:
        key = slot.dataset, slot.epoch, slot.group, slot.block
        if self._last is None or key != self._last[0]:  # a step asks for one block a thousand times
            self._last = key, self._blocks[key]
        return self._last[1]

    def pairs(self, slot: Slot) -> tuple[Pair, ...]:
        """The pairs that the task draws for a slot."""
        tables = self.block(slot).tables
        if not self._preparer.draws_pairs:
            return (Pair(tables.sample_E.item(slot.example), slot.example),)
        return self._preparer.pairs(slot, tables, Draw(self._key(slot)))

    def lengths(self, slot: Slot, pairs: Sequence[Pair]) -> tuple[int, int]:
        """Tokens that the model computes for a slot's pairs, and texts among theirs that are cut at its limit; both are
        known before anything is read."""
        image_tokens_S = self.block(slot).image_tokens_S
        tokens, cut = 0, 0
        for pair in pairs:
            text_tokens, is_cut = self._text_tokens(slot, pair)
            tokens += pair.tokens(text_tokens, image_tokens_S.item(pair.image))
            cut += is_cut
        return tokens, cut

    def _text_tokens(self, slot: Slot, pair: Pair) -> tuple[int, bool]:
        """Tokens of a pair's text, or of its two texts in one; and whether they are cut at the model's limit."""
        block = self.block(slot)
        tokens = block.tables.tokens_E.item(pair.text)
        if pair.second is None:
            return tokens, block.cut_E.item(pair.text)
        both = tokens + block.tables.tokens_E.item(pair.second) - 1  # they share one [CLS]
        limit = self._datasets[slot.dataset].lengths.limit
        return min(both, limit), both > limit

    def shards(self, slot: Slot, pairs: Sequence[Pair]) -> set[str]:
        """Names of the shards that a slot's pairs are read from."""
        tables, dataset = self.block(slot).tables, self._datasets[slot.dataset]
        rows = {pair.image for pair in pairs} | {tables.sample_E.item(text) for pair in pairs for text in pair.texts}
        rows |= {loan.sample for pair in pairs for loan in pair.loans}
        return {dataset.shard_name(int(tables.shard_S[row])) for row in rows}

    def directory(self, slot: Slot) -> str:
        """Where a slot's dataset lies."""
        return self._datasets[slot.dataset].directory

    def examples(self, slot: Slot, pairs: Sequence[Pair], step: int) -> list[Example]:
        """Read and prepare the pairs of a slot.

        Raises:
            BadSample: a sample cannot be read or used.
        """
        return self.prepare(slot, self.read(slot, pairs), step)

    def read(self, slot: Slot, pairs: Sequence[Pair]) -> list[ReadPair]:
        """The pairs of a slot with their samples, each sample read once with the members it is needed for.

        Raises:
            BadSample: a sample cannot be read.
        """
        tables, dataset = self.block(slot).tables, self._datasets[slot.dataset]
        texts = {tables.sample_E.item(text) for pair in pairs for text in pair.texts}
        images = {pair.image for pair in pairs}
        samples = {}
        for row in sorted(images | texts):
            place = slot.dataset, tables.shard_S.item(row), tables.row_S.item(row)
            samples[row] = self._samples[place, row in images, row in texts]
        found = []
        for number, pair in enumerate(pairs):
            row, text_number = tables.sample_E.item(pair.text), tables.text_E.item(pair.text)
            name = dataset.shard_name(tables.shard_S.item(row)).removesuffix(".tar")
            text = samples[row]
            image = self._viewed(slot, number, samples[pair.image], text, text_number)
            if pair.loans:
                image = replace(image, lent_KD=self._lent(slot, pair))
            if pair.second is not None:
                other, its_number = samples[tables.sample_E.item(pair.second)], tables.text_E.item(pair.second)
                text = replace(text, second=numbered_text(other, dataset.texts, its_number)[0])
            rng = Draw(self._key(slot, number))
            found.append(ReadPair(pair, image, text, text_number, rng, f"{name}/{text.key}#{text_number}"))
        return found

    def _lent(self, slot: Slot, pair: Pair) -> NDArray[np.floating[Any]]:
        """Features of the regions that a pair is lent, [K, D]."""
        tables, dataset = self.block(slot).tables, self._datasets[slot.dataset]
        return np.concatenate(
            [
                dataset.read_features(
                    tables.shard_S.item(loan.sample), tables.row_S.item(loan.sample), loan.first, loan.regions
                )
                for loan in pair.loans
            ]
        )

    def show(self, slot: Slot, read: Sequence[ReadPair]) -> None:
        """Make the images of a slot's pairs what the model takes.

        Raises:
            BadSample: an image cannot be used.
        """
        for one in read:
            try:
                one.image = self._preparer.shown(one.image, one.rng)
            except Fault as fault:
                raise self._bad(slot, one, fault) from fault

    def _bad(self, slot: Slot, one: ReadPair, fault: Fault) -> BadSample:
        """A fault as one of the pair's image."""
        name = self._datasets[slot.dataset].shard_name(int(self.block(slot).tables.shard_S[one.pair.image]))
        return BadSample(name, one.image.key, fault.member, fault.reason)

    def prepare(self, slot: Slot, read: Sequence[ReadPair], step: int) -> list[Example]:
        """The examples of a slot's pairs, whose images may have been shown.

        Raises:
            BadSample: a sample cannot be used.
        """
        examples = []
        for one in read:
            try:
                example = self._preparer.example(slot, one.pair, one.image, one.text, one.text_number, one.rng, step)
            except Fault as fault:
                raise self._bad(slot, one, fault) from fault
            example.id = example.id or one.id
            examples.append(example)
        return examples

    def _viewed(self, slot: Slot, pair: int, image: Sample, text: Sample, text_number: int) -> Sample:
        """The sample of an image as this pair looks at it."""
        if self._augment is None:
            return image
        words, question = numbered_text(text, self._datasets[slot.dataset].texts, text_number)
        rng = generator(self._key(slot, pair), "view")
        return replace(image, view=draw_view(self._augment, image, words, question=question, rng=rng))

    def _key(self, slot: Slot, pair: int = 0) -> int:
        """What the numbers of a slot's pair are drawn from."""
        return (self.block(slot).keys_E.item(slot.example) + pair) % (1 << 64)

    def _read_sample(self, which: tuple[tuple[int, int, int], bool, bool]) -> Sample:
        (dataset, shard, row), image, texts = which
        wanted = self._preparer
        return self._datasets[dataset].read(
            shard, row, image=image and wanted.wants_image, regions=image and wanted.wants_regions, texts=texts
        )

    def _open(self, which: tuple[int, int, int, int]) -> OpenBlock:
        dataset, epoch, group, block = which
        anywhere = Slot(0, 0, dataset, epoch, block, group, 0)
        tables, cut_E = self._datasets[dataset].open_block(self._places.block_shards(anywhere))
        seed = derive(self._places.seed, "example", dataset, epoch)
        return OpenBlock(tables, cut_E, image_tokens(tables, self._preparer, self._image_tokens), seed)


def numbered_text(sample: Sample, texts: Texts, number: int) -> tuple[str, bool]:
    """A text of a sample as `texts` counts them, and whether it is a question."""
    captions = sample.captions if texts != "questions" else ()
    if number < len(captions):
        return captions[number], False
    return sample.questions[number - len(captions)].text, True


def image_tokens(tables: Block, preparer: Preparer, count: ImageTokens) -> NDArray[np.int64]:
    """Image tokens of each sample of a block, [S]; zero where the task takes no image or the sample has none."""
    if not preparer.wants_regions:
        return np.where(tables.has_image_S, count(0) if preparer.wants_image else 0, 0).astype(np.int64)
    found, which_S = np.unique(tables.regions_S, return_inverse=True)
    tokens_S = np.array([count(int(regions)) if regions else 0 for regions in found], np.int64)[which_S]
    return np.where(tables.has_image_S, tokens_S, 0) if preparer.wants_image else tokens_S
