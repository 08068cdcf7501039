"""AdamW with decoupled decay, none of it on norms and biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from vlp.config import Config

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019): decay is applied to the weights, not to the gradient."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate; the schedule multiplies it."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of weight matrices; norms and biases (fewer than 2 dimensions) have none. 0.01 as in BERT."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the running square."""
    clip_norm: float | None = Field(None, gt=0)
    """Global gradient norm above which gradients are scaled down; none means no clipping."""


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> AdamW:
    """The optimizer over the trainable parameters of a module, with a learning rate of 0.

    The engine sets the rate before each step. It starts at 0 because DeepSpeed takes a trial step with zero gradients
    while it starts, which would otherwise decay the weights.
    """
    from torch.optim import AdamW

    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    kept = [group for group in groups if group["params"]]
    return AdamW(kept, lr=0.0, betas=config.betas, eps=config.epsilon, fused=True)
