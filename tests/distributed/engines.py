"""The engine around a task's module, with the choices that most tests of several ranks make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlp.distributed import World
from vlp.train.engine import Engine
from vlp.train.optimizer import OptimizerConfig
from vlp.train.zero import Precision


def engine_around(
    module: Any,
    weights: Mapping[str, float],
    stage: int,
    world: World,
    *,
    optimizer: OptimizerConfig,
    precision: Precision = "fp32",
    seed: int = 0,
) -> Engine:
    """A fresh engine at a ZeRO stage; stage 3 gathers and frees every parameter, however small."""
    # By default it would keep parameters as small as those of tests whole on every rank.
    zero = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}}
    return Engine(module, weights=weights, optimizer=optimizer, precision=precision, zero=zero, world=world, seed=seed)
