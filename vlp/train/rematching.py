"""The images of a micro-batch paired with texts from anywhere in the global batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp.data.batch import ImageForm, collate
from vlp.distributed import World, gather_rows
from vlp.models.pooler import PoolerConfig
from vlp.objectives.read import rows_read
from vlp.types import Batch, Example, Packing, RegionInput, Rematched

NO_IMAGE = ImageForm("regions", 0)
"""The form of images whose states are known, so that nothing of them need be seen."""


@dataclass(frozen=True)
class Texts:
    """The texts of all pairs of a global batch, as contrast reads them."""

    tokens: list[NDArray[np.int64]]
    """Per pair the ids and the segments of its tokens, [T, 2]."""

    @classmethod
    def gathered(cls, batches: Sequence[Batch], name: str, order_G: Tensor, world: World) -> Texts:
        """The texts of every rank's micro-batches, on every rank; collective.

        Args:
            name: of the objective whose targets say which examples are meant.
            order_G: for each pair of the global batch its number, counted rank after rank.
        """
        own: list[Tensor] = []
        for batch in batches:
            text = batch.text if batch.plain is None else batch.plain.text
            parts = torch.split(torch.stack([text.ids_N, text.segments_N], dim=1), list(text.packing.lengths))
            own += [parts[row] for row in batch.targets[name].positions_K.tolist()]
        none = torch.zeros(0, 2, dtype=torch.int64)
        lengths = gather_rows(torch.tensor([len(part) for part in own], device=world.device).long(), world)
        tokens = gather_rows(torch.cat([none, *own]).to(world.device), world).cpu()
        ranked = torch.split(tokens, lengths.tolist())
        return cls([ranked[number].numpy() for number in order_G.tolist()])


@dataclass(frozen=True)
class Found:
    """What a micro-batch learns of its mismatched pairs."""

    pairs: Rematched
    rows_P: Tensor
    """int64: for each pair that is judged its row in [the batch's own pairs ; `pairs`]."""
    matched_P: Tensor
    """int64: 1 where image and text belong together."""


def rematched(
    batch: Batch,
    name: str,
    rows_K: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    texts: Texts,
    form: ImageForm,
    pooler: PoolerConfig,
) -> Found:
    """The pairs that a micro-batch makes: its matched ones, and those mismatched ones whose image it has.

    Where contrast reads texts before words were hidden, so does matching, and the matched pairs are made of them too;
    else they are the batch's own.

    Args:
        rows_K: rows in the global batch of the examples with a target of `name`.
        pairs: rows of image and text of all mismatched pairs.
        form: what the model's images look like.
        pooler: the model's, whose rows are all that is read of the pairs.
    """
    example_of = dict(zip(rows_K, batch.targets[name].positions_K.tolist(), strict=True))
    mismatched = [(image, text) for image, text in pairs if image in example_of]
    matched = [] if batch.plain is None else [(row, row) for row in rows_K]
    made = matched + mismatched
    foreign = sorted({text for _, text in mismatched} - example_of.keys())
    others = collate([_example(texts.tokens[text], None) for text in foreign], form, {})
    start_of = {row: _start(batch.text.packing, example) for row, example in example_of.items()}
    behind = batch.text.packing.tokens
    start_of |= {row: behind + _start(others.text.packing, number) for number, row in enumerate(foreign)}
    images = [example_of[image] for image, _ in made]
    lengths = [batch.image.packing.lengths[example] for example in images]
    both = [_example(texts.tokens[text], _image(length)) for (_, text), length in zip(made, lengths, strict=True)]
    met = collate(both, NO_IMAGE, {})
    met.read = rows_read(met, (), pooler)
    found = Rematched(
        others=others,
        pairs=met,
        text_rows_N=_rows([(start_of[text], len(texts.tokens[text])) for _, text in made]),
        image_rows_M=_rows([(_start(batch.image.packing, e), n) for e, n in zip(images, lengths, strict=True)]),
    )
    own = [] if matched else batch.targets[name].positions_K.tolist()
    rows = [*own, *range(len(batch), len(batch) + len(made))]
    flags = [1] * (len(own) + len(matched)) + [0] * len(mismatched)
    return Found(found, torch.tensor(rows, dtype=torch.int64), torch.tensor(flags, dtype=torch.int64))


def _example(tokens_T2: NDArray[np.int64], image: RegionInput | None) -> Example:
    ids_T, segment_T = tokens_T2[:, 0], tokens_T2[:, 1]
    nowhere_T = np.zeros(len(ids_T), np.int64)
    return Example("", ids_T, nowhere_T.astype(np.bool_), nowhere_T, image, segment_T=segment_T)


def _image(tokens: int) -> RegionInput:
    return RegionInput(np.zeros((tokens, 0), np.float32), np.zeros((tokens, 4), np.float32))


def _start(packing: Packing, example: int) -> int:
    return int(packing.starts_B1[example])


def _rows(ranges: Sequence[tuple[int, int]]) -> Tensor:
    """The rows of all (first, how many), one after the other."""
    return torch.cat([torch.zeros(0, dtype=torch.int64), *(torch.arange(first, first + n) for first, n in ranges)])
