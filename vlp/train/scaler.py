"""The loss scale of fp16 training: what a checkpoint keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEPT = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def scaler_state(optimizer: Any) -> dict[str, float]:
    """The dynamic loss scale of a DeepSpeed optimizer and what it counts by; empty where nothing is scaled."""
    scaler = getattr(optimizer, "loss_scaler", None)
    if not getattr(scaler, "dynamic", False):
        return {}
    return {name: float(getattr(scaler, name)) for name in _KEPT}


def set_scaler_state(optimizer: Any, state: Mapping[str, float]) -> None:
    """Go on scaling where `scaler_state` left off. A state from another precision is left alone."""
    scaler = getattr(optimizer, "loss_scaler", None)
    if not getattr(scaler, "dynamic", False):
        return
    for name, value in state.items():
        setattr(scaler, name, type(getattr(scaler, name))(value))
