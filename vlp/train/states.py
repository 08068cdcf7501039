"""Master weights and Adam's moments of this rank, by parameter name, at every ZeRO stage.

DeepSpeed keeps them in flat buffers that each stage cuts differently. A `Piece` is the part of one parameter that
this rank holds, as views into those buffers: what a checkpoint writes and what it sets back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements start .. start + length of a flattened parameter."""

    name: str
    start: int
    length: int
    values: dict[str, Tensor]
    """`weight`, `exp_avg` and `exp_avg_sq`: fp32 views, [length]."""


class States:
    """The optimizer's states behind a DeepSpeed engine.

    Args:
        engine: a DeepSpeed engine around torch's AdamW.
        parameters: the module's trainable parameters by the name that checkpoints use.
        masters: the fp32 tensor behind each, where it is not DeepSpeed's.
    """

    def __init__(
        self, engine: Any, parameters: dict[str, nn.Parameter], masters: dict[nn.Parameter, Tensor] | None = None
    ) -> None:
        self.stage: int = engine.zero_optimization_stage()
        self.parameters = parameters
        self._engine = engine
        self._optimizer = engine.optimizer
        self.adam = engine.basic_optimizer
        self._masters = self._pair_masters() if masters is None else masters
        self._prepare()

    def _pair_masters(self) -> dict[nn.Parameter, Tensor]:
        """Stage 0 in fp16: the fp32 tensor behind each parameter."""
        if self.stage > 0:
            return {}
        groups = zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True)
        return {parameter: master for pair in groups for parameter, master in zip(*pair, strict=True)}

    def _prepare(self) -> None:
        """Make Adam's states before the first step, all zero, so that a checkpoint can be set at once."""
        import torch

        for tensor in self._tensors():
            self.adam.state[tensor] = {
                "step": torch.tensor(0.0),
                **{moment: torch.zeros_like(tensor, requires_grad=False) for moment in MOMENTS},
            }
        if self.stage in (1, 2):
            self._optimizer._lazy_init_hp_params_optimizer_state()  # links parameters to the moments made above

    def _tensors(self) -> list[Tensor]:
        """The fp32 tensors that Adam steps: parameters at stage 0, else flat partitions."""
        if self.stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return [tensor for group in self.adam.param_groups for tensor in group["params"]]

    @property
    def steps(self) -> int:
        """Steps that Adam has counted (for its bias correction)."""
        return max((int(state["step"]) for state in self.adam.state.values()), default=0)

    def set_steps(self, steps: int) -> None:
        """Set Adam's count on all its states."""
        for state in self.adam.state.values():
            state["step"].fill_(float(steps))

    def pieces(self) -> Iterator[Piece]:
        """This rank's pieces. At stage 0 every rank has all of everything."""
        if self.stage == 0:
            yield from self._whole()
        elif self.stage == 3:
            yield from self._partitions()
        else:
            yield from self._fragments()

    def _whole(self) -> Iterator[Piece]:
        for name, parameter in self.parameters.items():
            master = self._masters[parameter]
            state = self.adam.state[master]
            values = {"weight": master.data.view(-1)} | {key: state[key].view(-1) for key in MOMENTS}
            yield Piece(name, 0, parameter.numel(), values)

    def _fragments(self) -> Iterator[Piece]:
        for name, parameter in self.parameters.items():
            link: Any = getattr(parameter, "_hp_mapping", None)
            if link is None:
                continue
            place = link.lp_fragment_address
            values = {"weight": link.get_hp_fragment().data}
            values |= {key: link.get_hp_fragment(optim_state_key=key) for key in MOMENTS}
            yield Piece(name, place.start, place.numel, values)

    def _partitions(self) -> Iterator[Piece]:
        for name, parameter in self.parameters.items():
            group, offset, length = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
            flat = self._optimizer.fp32_partitioned_groups_flat[group]
            start = length * self._optimizer._get_param_partition_rank(parameter)
            held = max(0, min(length, int(parameter.ds_numel) - start))  # type: ignore[attr-defined]  # the rest is padding
            if held == 0:
                continue
            values = {"weight": flat.data.narrow(0, offset, held)}
            values |= {key: self.adam.state[flat][key].narrow(0, offset, held) for key in MOMENTS}
            yield Piece(name, start, held, values)

    def refresh_working_weights(self) -> None:
        """Copy the master weights into those that forward uses; collective."""
        if self.stage in (1, 2):
            self._optimizer.update_lp_params()
        elif self.stage == 3:
            self._refresh_partitions()
        else:
            for parameter, master in self._masters.items():
                parameter.data.copy_(master.data)

    def _refresh_partitions(self) -> None:
        """As DeepSpeed does at the end of a step: each rank copies its own, and only what stays whole is sent."""
        self._optimizer._partition_all_parameters()
        for group in range(len(self._optimizer.fp16_partitioned_groups_flat)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(group)
        whole = self._optimizer.persistent_parameters
        if whole:
            whole[0].all_gather(whole)

    def full_weight(self, parameter: nn.Parameter) -> Tensor:
        """The whole fp32 weight of a trainable parameter, on every rank; collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        if self.stage == 0:
            return self._masters[parameter].data
        weight: Tensor = safe_get_full_fp32_param(parameter)
        return weight
