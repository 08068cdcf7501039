"""Examples in, features out: packed batches of examples of like length, results in the order given.

Shape suffixes: B examples, H width of a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlp.data.batch import collate
from vlp.errors import ConfigError
from vlp.features.kinds import Feature
from vlp.features.sharing import SharedImages, in_batches, worth_sharing
from vlp.features.taps import Caught, caught, check_numbers, maps
from vlp.models.halves import separable, unimodal
from vlp.objectives.itc import SIDES
from vlp.tasks.abilities import comparer_of, matcher_of
from vlp.types import Batch, Encoded, Example, Packing

if TYPE_CHECKING:
    from vlp.vision_language_model import VisionLanguageModel

Arrays = dict[str, NDArray[np.float32]]
"""The features of one example, by name."""

_ALONE = ("text.unimodal", "image.unimodal", "text.vector", "image.vector")
"""What needs no block in which text and image meet."""


class Extractor:
    """Runs a model, where and as its weights are, for some features.

    Args:
        micro_tokens: most tokens of a batch (a longer example stands alone).
    Raises:
        ConfigError: the model cannot give a feature.
    """

    def __init__(self, model: VisionLanguageModel, features: Sequence[Feature], micro_tokens: int = 8192) -> None:
        self.features = tuple(features)
        self._model, self._micro_tokens = model, micro_tokens
        self._matcher, self._comparer = matcher_of(model.trained_task), comparer_of(model.trained_task)
        self._refuse_impossible()
        check_numbers(model.network, self.features)
        self.widths = self._widths()
        """Per feature the width of its states, or how many maps there are; 1 of a number."""

    def lacking(self, example: Example) -> str | None:
        """Why there are no features of an example; None where there are. An image's vector is of an image, and odds of
        a match of both; a model that was trained without images is asked as it was trained."""
        without = self._model.task.without if self._model.task else None
        wanted = [one.name for one in self.features if one.name in ("image.vector", "itm")]
        if example.image is not None or without == "image" or not wanted:
            return None
        return f"is missing, and {wanted[0]} is of it; leave the pair or {wanted[0]} out"

    def run(self, examples: Sequence[Example]) -> list[Arrays]:
        """The features of each example, in fp32. No example's depend on the others."""
        result: list[Arrays] = [{} for _ in examples]
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode(), caught(self._model.network, self.features) as found:
                shared = self._shared(examples)
                for places in in_batches([example.tokens for example in examples], self._micro_tokens):
                    part = [examples[place] for place in places]
                    if shared is None:
                        batch = self._collated(part)
                        encoded = self._encoded(batch)
                    else:
                        batch, encoded = shared.encoded(part, meet=self._meet)
                    columns = self._columns(batch, encoded, found)
                    for row, place in enumerate(places):
                        result[place] = {name: column[row] for name, column in columns.items()}
        finally:
            self._model.train(was_training)
        return result

    def _shared(self, examples: Sequence[Example]) -> SharedImages | None:
        """The states of images that several examples have, where it pays to keep them."""
        if not worth_sharing(self._model.network, self.features, examples):
            return None
        images = list({id(example.image): example.image for example in examples}.values())
        return SharedImages(self._model.network, self._model.images.form, images, self._micro_tokens)

    def _collated(self, examples: Sequence[Example]) -> Batch:
        weights = next(self._model.network.parameters())
        return collate(examples, self._model.images.form, {}).to(weights.device, weights.dtype)

    def _columns(self, batch: Batch, encoded: Encoded, found: Caught) -> dict[str, list[NDArray[np.float32]]]:
        """Per feature, an array for each example."""
        vectors = self._vectors(encoded, batch)
        return {one.name: self._column(one, encoded, vectors, batch, found) for one in self.features}

    @property
    def _meet(self) -> bool:
        """Whether the blocks are needed in which text and image meet."""
        return not all(one.name in _ALONE for one in self.features)

    def _encoded(self, batch: Batch) -> Encoded:
        if self._meet:
            return self._model.network(batch)  # type: ignore[no-any-return]
        text_NH, image_MH = unimodal(self._model.network, batch)
        return Encoded(text_NH, image_MH, text_NH[:0], {"text.unimodal": text_NH, "image.unimodal": image_MH})

    def _vectors(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        if self._comparer is None or not any(one.name.endswith(".vector") for one in self.features):
            return {}
        text_BD, image_BD = self._comparer.vectors(self._model.network.heads, encoded, batch)
        return {"text.vector": text_BD, "image.vector": image_BD}

    def _column(
        self, one: Feature, encoded: Encoded, vectors: dict[str, Tensor], batch: Batch, found: Caught
    ) -> list[NDArray[np.float32]]:
        if one.form == "map":
            return [each.numpy() for each in maps(found, batch, one.number)]
        if one.form == "tokens":
            packing = batch.text.packing if one.side == "text" else batch.image.packing
            return _split(self._states(one, encoded, found), packing)
        if one.name == "itm":
            assert self._matcher is not None
            return list(_array(self._matcher.log_odds(self._model.network.heads, encoded)))
        return list(_array(encoded.pooled_BH if one.name == "pooled" else vectors[one.name]))

    def _states(self, one: Feature, encoded: Encoded, found: Caught) -> Tensor:
        assert one.side is not None
        if one.number is not None:
            return found.layers[one.side, one.number]
        return {"text": encoded.text_NH, "image": encoded.image_MH, **encoded.taps}[one.name]

    def _widths(self) -> dict[str, int]:
        """By a run on no examples at all."""
        with torch.inference_mode(), caught(self._model.network, self.features) as found:
            batch = self._collated([])
            encoded = self._encoded(batch)
            vectors = self._vectors(encoded, batch)
            widths: dict[str, int] = {}
            for one in self.features:
                if one.form == "map":
                    heads = [looked.weights_BALL.shape[1] for looked in found.sublayers[(one.number or 1) - 1]]
                    widths[one.name] = max(heads) if one.number is not None else len(found.sublayers)
                elif one.form == "tokens":
                    widths[one.name] = self._states(one, encoded, found).shape[1]
                elif one.form == "vector":
                    like = encoded.pooled_BH if one.name == "pooled" else vectors[one.name]
                    widths[one.name] = like.shape[1]
                else:
                    widths[one.name] = 1
        return widths

    def _refuse_impossible(self) -> None:
        names = {one.name for one in self.features}
        trained = f"it was trained for '{self._model.task.task.name}'" if self._model.task else "its task is not known"
        if "itm" in names and self._matcher is None:
            raise ConfigError(
                f"--what: 'itm' cannot be extracted: the model has no head for matching ({trained}); pre-train with "
                "matching, or fine-tune for retrieval"
            )
        if names & {"text.vector", "image.vector"} and self._comparer is None:
            raise ConfigError(
                f"--what: vectors of text and image alone need a contrastive head, and the model has none ({trained}); "
                "fine-tune for retrieval with task.contrast"
            )
        for side in SIDES:
            if self._comparer and f"{side}.vector" in names and (reason := self._comparer.blind(side)):
                raise ConfigError(f"--what: {side}.vector: {reason}")
        if names & set(_ALONE) and not separable(self._model.config) and self._comparer is not None:
            raise ConfigError("--what: this model's text and image read each other from the start")


def _split(states: Tensor, packing: Packing) -> list[NDArray[np.float32]]:
    return [_array(part) for part in torch.split(states, list(packing.lengths))]


def _array(states: Tensor) -> NDArray[Any]:
    array: NDArray[np.float32] = states.float().cpu().numpy().copy()  # an example's own, not a view of its batch
    return array
