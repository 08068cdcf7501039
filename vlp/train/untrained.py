"""What of a task is not trained: frozen parameters, and persistent buffers (frozen batch statistics, ...)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Untrained:
    """Reads and sets them by name, at every ZeRO stage.

    Args:
        task: as the engine has taken it in.
    """

    def __init__(self, task: nn.Module, stage: int) -> None:
        self._task = task
        self._stage = stage

    def names(self) -> list[str]:
        """Of all of them."""
        return list(self._frozen()) + list(self._buffers())

    def values(self) -> dict[str, Tensor]:
        """All of them by name; collective."""
        frozen = {}
        for name, parameter in self._frozen().items():
            with self._gathered(parameter):
                frozen[name] = parameter.detach().clone()
        return frozen | self._buffers()

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Set what `values` gave; collective."""
        for name, parameter in self._frozen().items():
            with self._gathered(parameter, write=True), torch.no_grad():
                parameter.copy_(values[name])
        for name, buffer in self._buffers().items():
            buffer.copy_(values[name])

    def _frozen(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._task.named_parameters() if not p.requires_grad}

    def _buffers(self) -> dict[str, Tensor]:
        parameters = {name for name, _ in self._task.named_parameters(remove_duplicate=False)}
        state = self._task.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if name not in parameters}

    def _gathered(self, parameter: nn.Parameter, write: bool = False) -> AbstractContextManager[None]:
        """Within it a parameter is whole on every rank; what rank 0 writes reaches all."""
        if self._stage != 3:
            return nullcontext()
        import deepspeed

        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
            [parameter], modifier_rank=0 if write else None
        )
        return gathered
