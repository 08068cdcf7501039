"""What of a pre-trained model a fine-tuning changes: all, what is not frozen, or adapters beside what is."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import model_validator
from typing_extensions import Self

from vlp.config import Config, Pattern
from vlp.errors import ConfigError
from vlp.models.adapters import AdapterConfig, add_adapters
from vlp.models.model import Network

TRUNK = (r"^text\.", r"^image\.", r"^encoder\.")
"""All but pooler and heads."""


class TransferConfig(Config):
    """`transfer:` of a run. Layers that begin to learn one after the other, or slower, are the optimizer's matter."""

    freeze: tuple[Pattern, ...] | Literal["trunk"] = ()
    """Regular expressions, searched for in the names of the model's parameters, which then do not learn; `trunk` is
    all but pooler and heads."""
    adapters: AdapterConfig | None = None
    """Learn adapters beside the frozen weights; null for none."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.freeze and self.adapters is not None:
            raise ValueError(
                "freeze and adapters are both given, and adapters freeze all but themselves; take one back"
            )
        return self


def apply_transfer(model: Network, config: TransferConfig) -> str:
    """Freeze, or add adapters, in place.

    Returns:
        what is trained, as a line for a log; empty where it is everything.
    Raises:
        ConfigError: a pattern fits no parameter, or nothing is left to learn.
    """
    if config.adapters is not None:
        add_adapters(model, config.adapters)
    elif config.freeze:
        for pattern in TRUNK if config.freeze == "trunk" else config.freeze:
            fitting = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
            if not fitting:
                raise ConfigError(f"transfer.freeze: '{pattern}' fits no parameter of the model (see vlp describe)")
            for parameter in fitting:
                parameter.requires_grad_(False)
    else:
        return ""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not trained:
        raise ConfigError("transfer.freeze: leaves nothing to learn; freeze less")
    total = sum(parameter.numel() for parameter in model.parameters())
    return f"trains {trained:,} of {total:,} parameters"
