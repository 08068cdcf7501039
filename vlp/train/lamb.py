"""LAMB: Adam's step, scaled per tensor to the tensor's own size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch.optim import Optimizer


class Lamb(Optimizer):
    """Layer-wise adaptive moments for batches of tens of thousands (You et al. 2020, arXiv 1904.00962, algorithm 2).

    The moments are bias-corrected and decay is part of the step that is scaled, as in the paper. Needs whole tensors:
    a norm over a shard of one would scale it wrongly.

    Args:
        groups: with `params` and `weight_decay`.
        betas: decay of the running mean and square.
        eps: added to the root of the running square.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; gradients must be set."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        (beta1, beta2), count = group["betas"], float(state["step"])
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = mean / (1 - beta1**count) / ((square / (1 - beta2**count)).sqrt_().add_(group["eps"]))
        update.add_(parameter, alpha=group["weight_decay"])
        own, length = parameter.norm(), update.norm()
        # A tensor or a step of length zero has no direction to scale; it moves as Adam would.
        ratio = torch.where((own > 0) & (length > 0), own / length, 1.0)
        parameter.sub_(update * (group["lr"] * ratio))
