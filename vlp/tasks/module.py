"""The module that is trained: a model and the objectives that read it, in one call."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vlp.models.model import Network
from vlp.objectives.objective import Objective
from vlp.types import Batch, Encoded, Losses


class TaskModule(nn.Module):
    """Batch in, losses of all objectives out.

    Every parameter takes part in every call: a head without targets runs on zero rows, and states that no objective
    reads are tied in by zero rows of theirs. Otherwise ZeRO 1-2 crash and ZeRO 3 hangs or uses old gradients.
    """

    def __init__(self, model: Network, objectives: Mapping[str, Objective]) -> None:
        super().__init__()
        self.model = model
        self.objectives = dict(objectives)

    def forward(self, batch: Batch) -> Losses:
        encoded: Encoded = self.model(batch)
        tie = sum(states[:0].sum() for states in (encoded.text_NH, encoded.image_MH, encoded.pooled_BH))
        sums: dict[str, Tensor] = {}
        metrics: dict[str, tuple[Tensor, float | Tensor]] = {}
        for name, objective in self.objectives.items():
            targets = batch.targets[name]
            scores = objective.scores(self._head(name), objective.reading(encoded, batch), targets)
            total, measured = objective.loss(scores, targets)
            sums[name] = total + tie
            metrics.update(measured)
        return Losses(sums, metrics)

    def scores(self, batch: Batch, name: str) -> Tensor:
        """What one objective's head makes of the rows that have a target, in fp32."""
        objective = self.objectives[name]
        encoded = objective.reading(self.model(batch), batch)
        return objective.scores(self._head(name), encoded, batch.targets[name]).float()

    def _head(self, name: str) -> nn.Module | None:
        """The objective's head, if it has one."""
        return None if self.objectives[name].head() is None else self.model.heads[name]
