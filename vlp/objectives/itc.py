"""Image-text contrast: the vector of a text is nearest to that of its image, and the other way round. Sources: Radford
et al. 2021 (arXiv 2103.00020), section 2.3; over unimodal states, with a momentum model and a queue, Li et al. 2021
(arXiv 2107.07651), sections 3.2 and 3.3.

Pairs are told from all others of the global batch. A first pass over it (`vlp.train.survey`) makes all vectors without
a graph; then each micro-batch runs with its graph against them, so ranks and micro-batches change nothing. Without that
pass, a batch is told apart within itself.

Shape suffixes: K pairs, G pairs that they are told from, B examples, D width of a vector, H of a state.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from vlp.config import Config
from vlp.errors import ConfigError
from vlp.models.halves import looks_around, separable
from vlp.models.heads import COLDEST, HOTTEST, ContrastHead, HeadConfig
from vlp.models.image import ImageConfig, RegionSource
from vlp.models.model import ModelConfig
from vlp.models.patches import PatchSource
from vlp.objectives.gallery import Gallery, best, both_ways, scores, soft_cross_entropy
from vlp.objectives.objective import Hidden, ObjectiveConfig, SelfSupervised, SelfSupervisedConfig, empty_positions
from vlp.seeds import Draw
from vlp.types import Batch, Encoded, Packing, Rows, Stream, Target, Targets

Pool = Literal["first", "mean"]
PLAIN = "text.plain"
"""The tap that holds the texts' unimodal states before words were hidden."""
SIDES: tuple[Stream, ...] = ("text", "image")


class MomentumConfig(Config):
    """A slow copy of the model makes the vectors that pairs are told from, and part of the targets. Source: Li et al.
    2021 (arXiv 2107.07651), sections 3.2 (momentum contrast) and 3.3 (momentum distillation)."""

    decay: float = Field(0.995, gt=0, lt=1)
    """Share of the slow weights that stays at each step."""
    queue: int = Field(65536, ge=0)
    """Vectors of past steps that pairs are told from too; it is empty at the start."""
    alpha: float = Field(0.4, ge=0, le=1)
    """The slow model's share of the targets; 0 is contrast alone."""
    ramp: int = Field(0, ge=0)
    """Steps over which `alpha` rises from 0 (Li et al.: those of the first epoch)."""


class ContrastConfig(ObjectiveConfig):
    """Settings of contrast."""

    kind: Literal["contrast"] = "contrast"
    width: int = Field(256, gt=0)
    """Numbers of a vector."""
    temperature: float = Field(0.07, ge=COLDEST, le=HOTTEST)
    """What similarities are divided by at the start; it is learned, and stays between 0.001 and 0.5."""
    text: Pool = "first"
    """The text's state that makes its vector: that of its first token ([CLS]), or the mean of all."""
    image: Pool = "mean"
    """The image's, likewise."""
    momentum: MomentumConfig | None = None
    """Tell pairs from a slow model's vectors, past ones too; null tells them from the batch's own."""


class ContrastPretrainingConfig(ContrastConfig, SelfSupervisedConfig):
    """Settings of contrast in pre-training."""


class Contrast(SelfSupervised):
    """Cross entropy of each text's own image among those of the global batch, and of each image's own text."""

    rows: Rows = "example"
    pairs = "matched"

    def __init__(self, name: str, config: ContrastConfig, model: ModelConfig, key: str) -> None:
        super().__init__(name)
        if not separable(model):
            raise ConfigError(
                f"{key}: this model's text reads the image from the start (or the other way round), so neither has a "
                "vector of its own; leave it out"
            )
        self.config = config
        self._key, self._model = key, model

    def blind(self, side: Stream) -> str | None:
        """What the vectors of a side are made of, where that is not the whole text or image; None where it is.

        In a single-stream model nothing has read the words before text and image meet, so the state of [CLS] there is
        one for all texts. A mean of the words' embeddings is not, nor is what a backbone of pixels has looked at.
        """
        if getattr(self.config, side) == "mean" or looks_around(self._model, side):
            return None
        return _TEXT_IS_BLIND if side == "text" else _read_of_first(self._model.image)

    def check_sides(self) -> None:
        """Refuse to learn vectors that say nothing of their text or image.

        Raises:
            ConfigError: the key and the remedy are named.
        """
        for side in SIDES:
            if reason := self.blind(side):
                otherwise = f"say mean, or take a model with blocks of the {side} alone"
                raise ConfigError(f"{self._key}.{side}: 'first' is {reason}; {otherwise}")

    def head(self) -> HeadConfig:
        return ContrastHead(width=self.config.width, temperature=self.config.temperature)

    def empty(self) -> Target:
        return Target(empty_positions(), {"place": np.zeros(0, np.int64), "image": np.zeros(0, np.int64)})

    def target(self, hidden: Hidden, rng: Draw) -> Target:
        return self.target_of(hidden.place, image_number(*hidden.image))

    def target_of(self, place: int, image: int) -> Target:
        """The target of one pair.

        Args:
            place: in the global batch; no two pairs have the same.
            image: a number of its image; pairs of one image are not told from each other.
        """
        return Target(np.zeros(1, np.int64), {"place": np.full(1, place), "image": np.full(1, image)})

    def reading(self, encoded: Encoded, batch: Batch) -> Encoded:
        """With the pooled unimodal states as taps of their own, [B, H]; of texts before words were hidden."""
        text_NH = encoded.taps.get(PLAIN, encoded.taps["text.unimodal"])
        pooled = {
            "text.pooled": _pooled(text_NH, batch.text.packing, self.config.text),
            "image.pooled": _pooled(encoded.taps["image.unimodal"], batch.image.packing, self.config.image),
        }
        return replace(encoded, taps=encoded.taps | pooled)

    def scores(self, head: nn.Module | None, encoded: Encoded, targets: Targets) -> Tensor:
        """Text and image vectors and one over the temperature side by side, [K, 2 D + 1]."""
        text_KH, image_KH = (encoded.taps[f"{side}.pooled"].index_select(0, targets.positions_K) for side in SIDES)
        assert head is not None
        return head(text_KH, image_KH)  # type: ignore[no-any-return]

    def loss(self, scores_K: Tensor, targets: Targets) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:
        text_KD, image_KD, scale_K1 = self.parts(scores_K)
        survey = targets.survey
        if "text_pull" in survey:
            total, right_K = _pulled(text_KD, image_KD, survey)
        elif "text_gallery" in survey:
            total, right_K = _distilled(text_KD, image_KD, scale_K1, survey)
        else:
            rows_K = torch.arange(len(text_KD), device=text_KD.device)
            loss_K, right_K = both_ways(text_KD, image_KD, Gallery(text_KD, image_KD, targets.values["image"]), rows_K)
            total = loss_K.sum()
        pairs = float(len(scores_K))
        return total, {
            f"{self.name}_accuracy": (right_K.sum(), 2 * pairs),
            f"{self.name}_temperature": ((1 / scale_K1.detach()).sum(), pairs),
        }

    def parts(self, scores_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `scores` put side by side: text vectors, which the temperature has divided, images', and its inverse."""
        text_KD, image_KD, scale_K1 = torch.split(scores_K, [self.config.width, self.config.width, 1], dim=1)
        return text_KD, image_KD, scale_K1


def _pulled(text_KD: Tensor, image_KD: Tensor, survey: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The losses of these pairs, with the gradient that all pairs' losses have for their vectors."""
    pull = (text_KD * survey["text_pull"]).sum() + (image_KD * survey["image_pull"]).sum()
    return survey["loss"].sum() + (pull - pull.detach()), survey["right"]


def _distilled(text_KD: Tensor, image_KD: Tensor, scale_K1: Tensor, survey: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses against the slow model's vectors, whose scores are part of the targets."""
    gallery = Gallery(survey["text_gallery"], survey["image_gallery"], survey["images"])
    rows_K, alpha = survey["rows"], survey["alpha"]
    images_K = gallery.images_G[rows_K]
    teacher = {"text": gallery.text_GD[rows_K], "image": gallery.image_GD[rows_K]}
    loss_K, right_K = text_KD.new_zeros(len(rows_K)), text_KD.new_zeros(len(rows_K))
    ways = ((text_KD, teacher["text"], gallery.image_GD), (image_KD * scale_K1, teacher["image"], gallery.text_GD))
    for query_KD, slow_KD, keys_GD in ways:
        scores_KG = scores(query_KD, keys_GD, images_K, gallery.images_G, rows_K)
        with torch.no_grad():
            teacher_KG = scores(slow_KD * scale_K1, keys_GD, images_K, gallery.images_G, rows_K)
        loss_K = loss_K + soft_cross_entropy(scores_KG, teacher_KG, rows_K, alpha) / 2
        right_K = right_K + best(scores_KG, rows_K)
    return loss_K.sum(), right_K


_TEXT_IS_BLIND = "one state for all texts, since no block looks at a text's words before they meet the image"


def _read_of_first(image: ImageConfig) -> str | None:
    """What the first of an image's tokens holds of it, where they have not looked at each other; None for all of it."""
    if image.cls:
        return "one state for all images, since no block looks at an image's tokens before they meet the text"
    match image.source:
        case PatchSource():
            return "its first patch alone"
        case RegionSource():
            return None if image.source.whole else "its first region alone"
        case _:  # a backbone's tokens have seen each other
            return None


def image_number(dataset: int, key: str) -> int:
    """A number of a sample's image that is the same in every block, epoch and run."""
    return int.from_bytes(blake2b(f"{dataset}/{key}".encode(), digest_size=8).digest(), "little") >> 1


def _pooled(states_NH: Tensor, packing: Packing, pool: Pool) -> Tensor:
    """One state per example, zeros where it has no token; [B, H]."""
    lengths_B = packing.lengths_B.to(states_NH.device)
    if pool == "mean":
        sums_BH = states_NH.new_zeros(len(packing), states_NH.shape[1]).index_add(0, packing.examples_N, states_NH)
        return sums_BH / lengths_B[:, None].clamp_min(1).to(states_NH.dtype)
    seen = [row for row, length in enumerate(packing.lengths) if length]
    rows = torch.tensor(seen, dtype=torch.int64, device=states_NH.device)
    first = states_NH.index_select(0, packing.starts_B1[:-1].long().index_select(0, rows))
    return states_NH.new_zeros(len(packing), states_NH.shape[1]).index_copy(0, rows, first)
