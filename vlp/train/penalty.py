"""A penalty on weights for what they are or for how far they have moved, as part of the loss."""

from __future__ import annotations

import re
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from vlp.config import Config, Pattern
from vlp.errors import ConfigError


class PenaltyConfig(Config):
    """`l1 * sum |w - w0| + l2 / 2 * sum (w - w0)^2`; with both an elastic net. Toward the start it is L2-SP (Li et al.
    2018, arXiv 1802.01483, section 3.2): a new head starts near zero, so it is held there."""

    l1: float = Field(0.0, ge=0)
    """Factor of the absolute differences."""
    l2: float = Field(0.0, ge=0)
    """Factor of half the squared differences."""
    toward: Literal["start", "zero"] = "start"
    """What w0 is: each weight's value at the start of the run, or 0."""
    pattern: Pattern = ""
    """A regular expression, searched for in a parameter's name; by default it fits all."""

    @model_validator(mode="after")
    def _penalises(self) -> Self:
        if self.l1 == 0 and self.l2 == 0:
            raise ValueError("l1 and l2 are both 0, so nothing is penalised; give one, or remove the penalty")
        return self


class Penalty:
    """The penalty of a module's trainable parameters.

    Args:
        module: with its weights as the run starts with them; they are copied for `toward: start`.
    Raises:
        ConfigError: the pattern fits no trainable parameter.
    """

    def __init__(self, config: PenaltyConfig, module: nn.Module) -> None:
        self.config = config
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._start = {
            name: torch.zeros(()) if config.toward == "zero" else parameter.detach().clone()
            for name, parameter in trained.items()
            if re.search(config.pattern, name.removeprefix("model."))
        }
        if not self._start:
            raise ConfigError(f"penalty.pattern: '{config.pattern}' fits no trainable parameter; correct it")

    def __call__(self, module: nn.Module) -> Tensor:
        """The penalty of the module's weights now, fp32, with a graph."""
        total: Tensor | None = None
        for name, parameter in module.named_parameters():
            start = self._start.get(name)
            if start is None:
                continue
            if start.device != parameter.device:
                start = self._start[name] = start.to(parameter.device)
            moved = parameter.float() - start
            part = self.config.l1 * moved.abs().sum() + self.config.l2 / 2 * moved.square().sum()
            total = part if total is None else total + part
        assert total is not None
        return total
