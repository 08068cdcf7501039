"""The module that is trained: a model and the objectives that read it, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vlp.models.halves import joined, unimodal
from vlp.models.model import Network
from vlp.objectives.itc import PLAIN, Contrast
from vlp.objectives.itm import REMATCHED
from vlp.objectives.objective import Objective
from vlp.types import Batch, Encoded, Losses, Rematched


class TaskModule(nn.Module):
    """Batch in, losses of all objectives out.

    Every parameter takes part in every call: a head without targets runs on zero rows, and states that no objective
    reads are tied in by zero rows of theirs. Otherwise ZeRO 1-2 crash and ZeRO 3 hangs or uses old gradients.
    """

    def __init__(self, model: Network, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        self.model = model
        self.objectives = dict(objectives)

    @property
    def contrast(self) -> Contrast | None:
        """The objective that tells pairs of the global batch apart, if there is one."""
        return next((each for each in self.objectives.values() if isinstance(each, Contrast)), None)

    def forward(self, batch: Batch) -> Losses:
        # First, so that its dropout is drawn as `vectors` draws it.
        plain = self._plain(batch)
        encoded: Encoded = self.model(batch)
        encoded.taps |= plain
        unread = [encoded.text_NH, encoded.image_MH, encoded.pooled_BH]
        if batch.rematched is not None:
            pairs = self._rematched(encoded, batch.rematched)
            encoded.taps[REMATCHED] = pairs.pooled_BH
            unread += [pairs.text_NH, pairs.image_MH, pairs.pooled_BH]
        tie = sum(states[:0].sum() for states in (*unread, *plain.values()))
        sums: dict[str, Tensor] = {}
        metrics: dict[str, tuple[Tensor, float | Tensor]] = {}
        for name, objective in self.objectives.items():
            head, read = self._head(name), objective.reading(encoded, batch)
            total, measured = objective.judged(head, read, batch.targets[name])
            sums[name] = total + tie
            metrics.update(measured)
        return Losses(sums, metrics)

    def scores(self, batch: Batch, name: str) -> Tensor:
        """What one objective's head makes of the rows that have a target, in fp32."""
        return self._scored(self.objectives[name], self.model(batch), batch).float()

    def met_scores(self, text_NH: Tensor, image_MH: Tensor, batch: Batch, name: str) -> Tensor:
        """The same, by the states where text and image meet; for an objective that reads no states before."""
        encoded = joined(self.model, text_NH, image_MH, batch)
        return self._scored(self.objectives[name], encoded, batch).float()

    def _head(self, name: str) -> nn.Module | None:
        """The objective's head, if it has one."""
        return None if self.objectives[name].head() is None else self.model.heads[name]

    def vectors(self, batch: Batch) -> Tensor:
        """What contrast makes of the pairs (see its `scores`), by the blocks before text and image meet alone; the
        same as `forward` makes of them, dropout included, where the random generator starts alike."""
        contrast = self.contrast
        assert contrast is not None
        taps = self._plain(batch)
        text_NH, image_MH = unimodal(self.model, batch)
        taps |= {"text.unimodal": text_NH, "image.unimodal": image_MH}
        return self._scored(contrast, Encoded(text_NH, image_MH, text_NH[:0], taps), batch)

    def guesses(self, batch: Batch, names: Sequence[str]) -> tuple[Tensor, ...]:
        """What the heads of some objectives make of the rows that have a target, by one forward of the whole model."""
        plain = self._plain(batch)
        encoded: Encoded = self.model(batch)
        encoded.taps |= plain
        return tuple(self._scored(self.objectives[name], encoded, batch) for name in names)

    def _scored(self, objective: Objective, encoded: Encoded, batch: Batch) -> Tensor:
        name = objective.name
        return objective.scores(self._head(name), objective.reading(encoded, batch), batch.targets[name])

    def _plain(self, batch: Batch) -> dict[str, Tensor]:
        """The unimodal states of the texts before words were hidden, if those are asked for."""
        return {} if batch.plain is None else {PLAIN: unimodal(self.model, batch.plain)[0]}

    def _rematched(self, encoded: Encoded, found: Rematched) -> Encoded:
        """Images of the batch with other texts: what a text alone decides is made anew, what an image does is not."""
        own_NH = encoded.taps.get(PLAIN, encoded.taps["text.unimodal"])
        text_NH = torch.cat([own_NH, unimodal(self.model, found.others)[0]]).index_select(0, found.text_rows_N)
        image_MH = encoded.taps["image.unimodal"].index_select(0, found.image_rows_M)
        return joined(self.model, text_NH, image_MH, found.pairs)
