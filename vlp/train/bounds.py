"""Parameters that stay between two numbers, such as a learned temperature."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from vlp.train.states import States


class Bounds:
    """Brings parameters back after each step, as their modules' `bounds` say, {own name: (low, high)}.

    The master weights are cut, by the rank that holds them, so nothing is sent. The copies that forward reads follow
    with the next step; a module clamps what it reads until then.
    """

    def __init__(self, task: nn.Module, states: States) -> None:
        self._states = states
        self._of: dict[str, tuple[float, float]] = {}
        for prefix, module in task.named_modules():
            bounds: Mapping[str, tuple[float, float]] = getattr(module, "bounds", None) or {}
            self._of |= {f"{prefix}.{name}": limits for name, limits in bounds.items()}

    def apply(self) -> None:
        """Cut what has left its bounds."""
        if not self._of:
            return
        for piece in self._states.pieces():
            if piece.name in self._of:
                piece.values["weight"].data.clamp_(*self._of[piece.name])
