"""Adapters: small weights beside frozen linears, through peft, and their merging into the linears for saving.

A run trains `base_layer.weight` (frozen) and what peft puts beside it; `model/` holds the merged weight under the plain
name, so that whoever loads it needs neither peft nor this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from vlp.config import Config, Pattern
from vlp.errors import ConfigError
from vlp.models.kernels import wide_products
from vlp.models.model import ModelConfig, Network, without_downloads


class AdapterConfig(Config):
    """What stands beside which linears; everything else is frozen, but for `train`."""

    kind: Literal["lora", "loha", "lokr", "ia3"] = "lora"
    """Low-rank products (Hu et al. 2021, arXiv 2106.09685), their Hadamard (Hyeon-Woo et al. 2021, arXiv 2108.06098)
    or Kronecker kin, or one factor per output (Liu et al. 2022, arXiv 2205.05638)."""
    rank: int = Field(8, ge=1)
    """Of the products; unused by ia3."""
    alpha: int = Field(16, gt=0)
    """The product is scaled by alpha / rank; unused by ia3."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an input of a low-rank product; of lora only."""
    targets: Pattern = r"^encoder\."
    """A regular expression, searched for in the names of the model's linears."""
    train: tuple[Pattern, ...] = (r"^heads\.", r"^pooler\.")
    """Regular expressions of parameters that are trained as they are: heads are new and have nothing to adapt."""


def add_adapters(model: Network, config: AdapterConfig) -> None:
    """Put adapters beside the model's linears, in place; they change nothing before they are trained.

    Raises:
        ConfigError: peft is not installed, or no linear is called so.
    """
    try:
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise ConfigError(
            "transfer.adapters: needs peft, which is not installed: pip install 'vlp[adapters]'"
        ) from None
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.search(config.targets, name)
    ]
    if not names:
        raise ConfigError(
            f"transfer.adapters.targets: '{config.targets}' fits no linear of the model (see vlp describe)"
        )
    inject_adapter_in_model(_peft_config(config, names), model)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            _multiply_widely(module)
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in config.train):
            parameter.requires_grad_(True)


def merged(tensors: Mapping[str, Tensor], config: AdapterConfig, model: ModelConfig) -> dict[str, Tensor]:
    """The weights of a model without adapters that does what one with these weights does.

    Args:
        tensors: by name, as the model with adapters names them.
        model: what it is made of.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    whole = Network(without_downloads(model))
    plain = set(whole.state_dict())
    add_adapters(whole, config)
    whole.load_state_dict(tensors)
    for module in whole.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    found = {name.replace(".base_layer.", "."): tensor for name, tensor in whole.state_dict().items()}
    return {name: found[name].contiguous() for name in found if name in plain}


def _multiply_widely(layer: nn.Module) -> None:
    """Let a layer of peft's, whose products are torch's, run within `wide_products`, in backward again too."""
    entered: list[AbstractContextManager[object]] = []

    def enter(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        entered.append(wide_products(given[0]))
        entered[-1].__enter__()

    def leave(*_: object) -> None:
        entered.pop().__exit__(None, None, None)

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave, always_call=True)


def _peft_config(config: AdapterConfig, names: list[str]) -> Any:
    import peft

    match config.kind:
        case "lora":
            return peft.LoraConfig(
                r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=names
            )
        case "loha":
            return peft.LoHaConfig(r=config.rank, alpha=config.alpha, target_modules=names)
        case "lokr":
            return peft.LoKrConfig(r=config.rank, alpha=config.alpha, target_modules=names)
        case "ia3":
            return peft.IA3Config(target_modules=names, feedforward_modules=[])
