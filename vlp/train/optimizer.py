"""The optimizer: which parameters learn how fast, and how much they decay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vlp.config import Config, Pattern
from vlp.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


Beta = Annotated[float, Field(ge=0, lt=1)]


class ParameterGroup(Config):
    """Parameters that learn otherwise than the rest."""

    pattern: Pattern
    """A regular expression, searched for in a parameter's name (`vlp describe` shows the names' beginnings)."""
    learning_rate: float = Field(1.0, ge=0)
    """Factor on the learning rate; 0.1 for BERT's weights in Lu et al. 2019 (arXiv
    1908.02265)."""
    weight_decay: float | None = Field(None, ge=0)
    """Instead of `optimizer.weight_decay`, for all of them; none leaves the decay as it is."""


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019), where decay is applied to the weights, not to the gradient; or LAMB."""

    kind: Literal["adamw", "lamb"] = "adamw"
    """LAMB (You et al. 2020) scales each tensor's step by its norm, so it runs at ZeRO stage 0 only."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate; the schedule multiplies it."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of weight matrices. 0.01 as in BERT."""
    decay_all: bool = False
    """Decay norms and biases (fewer than 2 dimensions) too, as the code of Tan and Bansal 2019 (arXiv
    1908.07490) does."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the running square."""
    bias_correction: bool = True
    """Divide the running averages by what they lack at the start; BertAdam (BERT's first code) does not."""
    clip_norm: float | None = Field(None, gt=0)
    """Global gradient norm above which gradients are scaled down; none means no clipping."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor on the learning rate per layer below the heads (layer-wise decay: Clark et al. 2020, arXiv
    2003.10555); 1 is none."""
    unfreeze_every: int | None = Field(None, ge=1)
    """Gradual unfreezing (Howard and Ruder 2018, arXiv 1801.06146, 3.3): heads and pooler learn from the first step,
    and each layer below begins so many steps after the one above it. Null: all from the first step."""
    groups: tuple[ParameterGroup, ...] = ()
    """Parameters by name with a rate or decay of their own; the first that fits counts."""


def make_optimizer(module: nn.Module, config: OptimizerConfig, heights: Mapping[str, int] | None = None) -> Optimizer:
    """The optimizer over the trainable parameters of a module, with a learning rate of 0.

    `set_rate` sets the rate before each step. It starts at 0 because DeepSpeed takes a trial step with zero gradients
    while it starts, which would otherwise decay the weights.

    Args:
        heights: layers between a parameter and the heads, by name; needed for `layer_decay`.
    Raises:
        ConfigError: a group fits no parameter, or layers decay and heights are unknown.
    """
    from torch.optim import AdamW

    groups = parameter_groups(module, config, heights)
    if config.kind == "lamb":
        from vlp.train.lamb import Lamb

        return Lamb(groups, betas=config.betas, eps=config.epsilon)
    return AdamW(groups, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)


def parameter_groups(
    module: nn.Module, config: OptimizerConfig, heights: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Groups of parameters with one `rate_factor`, `weight_decay` and `frozen_steps` each, in the order of the module.

    Raises:
        ConfigError: as `make_optimizer`.
    """
    if config.layer_decay < 1 and heights is None:
        raise ConfigError("optimizer.layer_decay: the layers of this model are not known; set it to 1")
    if config.unfreeze_every is not None and heights is None:
        raise ConfigError("optimizer.unfreeze_every: the layers of this model are not known; leave it out")
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    fitted: set[str] = set()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        height = (heights or {}).get(name, 0)
        factor = config.layer_decay**height
        decay = config.weight_decay if config.decay_all or parameter.ndim >= 2 else 0.0
        own = next((group for group in config.groups if re.search(group.pattern, name)), None)
        if own is not None:
            fitted.add(own.pattern)
            factor *= own.learning_rate
            decay = decay if own.weight_decay is None else own.weight_decay
        frozen = height * (config.unfreeze_every or 0)
        groups.setdefault((factor, decay, frozen), []).append(parameter)
    for group in config.groups:
        if group.pattern not in fitted:
            raise ConfigError(
                f"optimizer.groups: pattern '{group.pattern}' fits no trainable parameter (or only ones that an "
                "earlier group has): correct it or remove the group"
            )
    return [
        {"params": parameters, "rate_factor": factor, "weight_decay": decay, "decay": decay, "frozen_steps": frozen}
        for (factor, decay, frozen), parameters in groups.items()
    ]


def set_rate(groups: list[dict[str, Any]], config: OptimizerConfig, rate: float, step: int) -> None:
    """Set the learning rate of step number `step` of the optimizer (from 1) on its groups.

    Torch's AdamW always corrects its averages. Without correction the same step results from a rate, an epsilon and a
    decay that undo it: m / (sqrt(v) + eps) = (c1 / c2) * (m / c1) / (sqrt(v) / c2 + eps / c2), with c1 = 1 - beta1^t
    and c2 = sqrt(1 - beta2^t). So ZeRO, which knows torch's AdamW by name, needs no optimizer of ours.
    """
    undone, epsilon = 1.0, config.epsilon
    if not config.bias_correction:
        first = 1 - config.betas[0] ** step
        second = (1 - config.betas[1] ** step) ** 0.5
        undone, epsilon = first / second, config.epsilon / second
    for group in groups:
        # A rate of 0 also stops the decay, which is part of the rate's step; moments gather all the same.
        group["lr"] = rate * group["rate_factor"] * undone if step > group["frozen_steps"] else 0.0
        group["weight_decay"] = group["decay"] / undone
        group["eps"] = epsilon
