"""What passes through DeepSpeed's engine in one call: a micro-batch's forward, and what is measured on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vlp.train.penalty import Penalty
    from vlp.types import Batch, Losses


class Root(nn.Module):
    """The module DeepSpeed wraps. It runs any function of the task, so that evaluation too passes ZeRO-3's hooks."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task

    def forward(self, call: Callable[[nn.Module], Any]) -> tuple[Any, ...]:
        result = call(self.task)
        return result if isinstance(result, tuple) else (result,)  # ZeRO-3's hooks know tuples, not every type


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One micro-batch's forward: the scaled loss with its graph, and what is reported."""

    batch: Batch
    objectives: list[str]
    scales_O: Tensor
    penalty: Penalty | None
    """Of the last micro-batch: gradients are means over ranks, so a penalty on each rank counts once."""

    def __call__(self, task: nn.Module) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, float | Tensor]]]:
        losses: Losses = task(self.batch)
        zero = self.scales_O.new_zeros(())
        sums_O = torch.stack([losses.sums.get(name, zero).float() for name in self.objectives])
        loss = (sums_O * self.scales_O).sum()
        measured = losses.metrics
        if self.penalty is not None:
            weights = self.penalty(task)
            loss = loss + weights
            measured = {**measured, "penalty": (weights, 1.0)}
        # A loss that is not finite makes every gradient NaN, so that all ranks skip the step at every stage without
        # another collective; for a finite loss this multiplies by exactly 1.
        loss = loss * (1 + 0 * loss.detach())
        return loss, sums_O.detach().double(), measured


class Metrics:
    """Sums and counts of metrics over the micro-batches of a step; stays on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float | Tensor] = {}

    def add(self, measured: Mapping[str, tuple[Tensor, float | Tensor]]) -> None:
        for name, (value, count) in measured.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0.0) + count

    def packed(self, device: torch.device) -> tuple[list[str], Tensor]:
        """Names in order, and a vector of all sums and then all counts."""
        names = sorted(self._sums)
        every = [*(self._sums[name] for name in names), *(self._counts[name] for name in names)]
        vector = [torch.as_tensor(value, dtype=torch.float64, device=device).reshape(1) for value in every]
        return names, torch.cat([torch.zeros(0, dtype=torch.float64, device=device), *vector])
