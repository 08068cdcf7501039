"""Several texts of one photo: what the image alone decides (a backbone, a tower) runs once for each photo, not once for
each text. A photo of COCO has five captions.

Shape suffixes: N text tokens, M image tokens, H width of a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vlp.data.batch import ImageForm, collate
from vlp.features.kinds import Feature
from vlp.models.halves import joined, separable, unimodal
from vlp.models.model import Network
from vlp.types import Batch, Encoded, Example, ImageInput, RegionInput

_WORTH = 0.8
"""Different images per example up to which their states are kept."""
_NO_WORDS = Example("", np.zeros(0, np.int64), np.zeros(0, np.bool_), np.zeros(0, np.int64), None)


def worth_sharing(network: Network, features: Sequence[Feature], examples: Sequence[Example]) -> bool:
    """Whether it saves work: images repeat, something runs on an image alone, and nobody asks what happened there."""
    encoder = network.encoder
    alone = any("image" in block.config.streams for block in encoder.order[: encoder.apart])
    if not (alone or network.image.backbones()) or not separable(network.config):
        return False
    if any(one.number is not None or one.form == "map" for one in features):
        return False
    return len({id(example.image) for example in examples}) <= _WORTH * len(examples)


class SharedImages:
    """The states of some images where text and image meet, each image run once.

    Args:
        form: of the images.
        images: each once; None is no image, which may have rows too.
        micro_tokens: most tokens of a batch.
    """

    def __init__(
        self, network: Network, form: ImageForm, images: Sequence[ImageInput | None], micro_tokens: int
    ) -> None:
        self._network, self._form = network, form
        self._states: dict[int, Tensor] = {}
        for places in in_batches([0 if image is None else len(image) for image in images], micro_tokens):
            part = [images[place] for place in places]
            batch = self._moved(collate([replace(_NO_WORDS, image=image) for image in part], form, {}))
            _, image_MH = unimodal(network, batch)
            lengths = batch.image.packing.lengths
            self._states |= zip(map(id, part), torch.split(image_MH, list(lengths)), strict=True)

    def encoded(self, examples: Sequence[Example], *, meet: bool) -> tuple[Batch, Encoded]:
        """A batch, in which images have no features, and what the model makes of it.

        Args:
            meet: whether the blocks in which text and image meet are run.
        """
        like = next(self._network.parameters())
        width = self._network.config.unimodal["image"].width
        own = [self._states[id(example.image)] for example in examples]
        image_MH = torch.cat([like.new_zeros(0, width), *own])
        texts = self._moved(collate([replace(example, image=None) for example in examples], self._form, {}))
        text_NH, _ = unimodal(self._network, texts)
        placed = [replace(each, image=_placeholder(len(rows))) for each, rows in zip(examples, own, strict=True)]
        batch = self._moved(collate(placed, ImageForm("regions", 0), {}))
        taps = {"text.unimodal": text_NH, "image.unimodal": image_MH}
        if not meet:
            return batch, Encoded(text_NH, image_MH, text_NH[:0], taps)
        found = joined(self._network, text_NH, image_MH, batch)
        found.taps |= taps
        return batch, found

    def _moved(self, batch: Batch) -> Batch:
        like = next(self._network.parameters())
        return batch.to(like.device, like.dtype)


def in_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places in batches of like length, the longest first: attention lays a batch out as long as its longest."""
    result: list[list[int]] = []
    used = budget + 1
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if used + lengths[place] > budget:
            result.append([])
            used = 0
        result[-1].append(place)
        used += lengths[place]
    return result


def _placeholder(rows: int) -> RegionInput:
    """An image of as many tokens, without anything to see."""
    return RegionInput(np.zeros((rows, 0), np.float32), np.zeros((rows, 4), np.float32))
