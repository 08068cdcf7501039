"""What the heads of a trained model can do for an application: match, compare, answer; whatever task taught them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.objectives.itc import Contrast
from vlp.objectives.itm import Matching
from vlp.objectives.ranking import Ranking, match_score
from vlp.tasks.task import Task
from vlp.types import Batch, Encoded, Stream, Targets


@dataclass(frozen=True)
class Matcher:
    """A head that tells whether image and text belong together."""

    head: str
    """Its name among the model's."""
    matched: int = 1
    """Which of its two scores speaks for a match."""

    def log_odds(self, heads: nn.ModuleDict, encoded: Encoded) -> Tensor:
        """Log odds of a match, [B], in fp32."""
        odds_B = match_score(heads[self.head](encoded.pooled_BH).float())
        return odds_B if self.matched == 1 else -odds_B


@dataclass(frozen=True)
class Comparer:
    """A head that makes vectors of a text and of an image, each by itself."""

    objective: Contrast

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.objective.config.width

    def blind(self, side: Stream) -> str | None:
        """Why the vectors of a side are of no use, and what would be; None where they are."""
        reason = self.objective.blind(side)
        return reason and (
            f"the {side}'s vector of this model is made of {reason}; train one with task.contrast.{side}=mean or with "
            f"blocks of the {side} alone"
        )

    def vectors(self, heads: nn.ModuleDict, encoded: Encoded, batch: Batch) -> tuple[Tensor, Tensor]:
        """Vectors of the texts and of the images, each [B, D], of length 1, in fp32; their product is the cosine."""
        everyone = _all_examples(batch, encoded.taps["text.unimodal"])
        reading = self.objective.reading(encoded, batch)
        parts = self.objective.scores(heads[self.objective.name], reading, everyone).float()
        text_BD, image_BD = parts[:, : self.width], parts[:, self.width : 2 * self.width]
        return F.normalize(text_BD, dim=1), F.normalize(image_BD, dim=1)


def matcher_of(task: Task | None) -> Matcher | None:
    """The matching head of a task's model, if it has one."""
    for name, objective in task.objectives.items() if task else ():
        if isinstance(objective, Ranking):
            return Matcher(name)
        if isinstance(objective, Matching):
            return Matcher(name, objective.config.matched_label)
    return None


def comparer_of(task: Task | None) -> Comparer | None:
    """The contrastive head of a task's model, if it has one."""
    found = (objective for objective in (task.objectives.values() if task else ()) if isinstance(objective, Contrast))
    return next(map(Comparer, found), None)


def _all_examples(batch: Batch, like: Tensor) -> Targets:
    """Targets that ask of every example of a batch."""
    return Targets(torch.arange(len(batch), device=like.device), {}, float(len(batch)))
