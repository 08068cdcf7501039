"""What autograd keeps of a forward pass, found by running it on the meta device and watching what is saved.

Kernels differ between devices in what they keep, so those that matter are put in: attention and dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from vlp.models.kernels import standing_for
from vlp.models.model import ModelConfig, Network, without_downloads
from vlp.models.transfer import apply_transfer
from vlp.run import RunConfig
from vlp.tasks.module import TaskModule
from vlp.tasks.task import Task
from vlp.types import Batch

Device = Literal["cuda", "cpu"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SHORT = 256
"""Keys below which attention on a CPU in bf16 takes the plain formula (see `vlp.models.attention`)."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of one micro-batch on the device."""

    inputs: int
    """Of the batch itself."""
    saved: int
    """Of what is kept for backward, inputs and weights aside."""
    largest: int
    """The largest tensor among them."""

    @property
    def total(self) -> int:
        return self.inputs + self.saved


def meta_task(run: RunConfig, task: Task) -> TaskModule:
    """The module that a run trains, without memory behind it, in the run's precision and with what it freezes."""
    with torch.device("meta"):
        model = Network(without_downloads(run.model))
        apply_transfer(model, run.transfer)
    return TaskModule(model, task.objectives).to(DTYPES[run.precision])


def kept_of(module: TaskModule, batch: Batch, device: Device) -> Kept:
    """What a forward pass of a micro-batch keeps.

    Args:
        module: on the meta device (`meta_task`).
        batch: on the CPU.
    """
    dtype = next(module.parameters()).dtype
    shown = batch.to("meta", None if dtype == torch.float32 else dtype)
    counter = _Counter(module)
    inputs = counter.seen_of(_tensors(shown))
    module.train()
    config: ModelConfig = module.model.config
    with counter.watching(), _Kernels(device), standing_for(device):
        losses = module(shown)
        counter.done()
    del losses
    saved = counter.recomputed if config.checkpointing else counter.saved
    return Kept(inputs, saved, counter.largest)


class _Counter:
    """Adds up the storages that autograd saves, each once; also per block of the encoder."""

    def __init__(self, module: TaskModule) -> None:
        self._module = module
        self._alive: list[Any] = []  # storages are told apart by their address, which must not be used again
        self._seen: set[int] = set()
        self.saved = self.largest = 0
        self._blocks: list[int] = []
        self._entering = 0
        self._start = 0
        self.seen_of([*module.parameters(), *module.buffers()])

    def seen_of(self, tensors: list[Tensor]) -> int:
        """Take note of tensors that are there in any case; the bytes of those that were not known."""
        return sum(self._taken(tensor) for tensor in tensors)

    def _taken(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return 0
        self._alive.append(storage)
        self._seen.add(storage._cdata)
        return storage.nbytes()

    def _keep(self, tensor: Tensor) -> Tensor:
        size = self._taken(tensor)
        self.saved += size
        self.largest = max(self.largest, size)
        return tensor

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it forward is counted. Blocks run as if nothing were recomputed; `recomputed` works out what is."""
        encoder = self._module.model.encoder
        handles = [handle for block in encoder.blocks for handle in self._hooked(block)]
        # What follows the last whole block is never run again, and is gone when the others are.
        handles.append(encoder.register_forward_pre_hook(lambda *_: self._begin()))
        handles.append(encoder.register_forward_hook(lambda *_: self._end()))
        checkpointing, encoder.checkpointing = encoder.checkpointing, False
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        finally:
            encoder.checkpointing = checkpointing
            for handle in handles:
                handle.remove()

    def _hooked(self, block: nn.Module) -> list[Any]:
        def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._begin()
            self._entering += sum(tensor.untyped_storage().nbytes() for tensor in arguments[0].held()[1])

        def after(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
            self._end()

        return [block.register_forward_pre_hook(before), block.register_forward_hook(after)]

    def _begin(self) -> None:
        self._start = self.saved

    def _end(self) -> None:
        self._blocks.append(self.saved - self._start)
        self._begin()

    def done(self) -> None:
        self._alive.clear()

    @property
    def recomputed(self) -> int:
        """Bytes where only what enters a block is kept, and one block at a time is run again."""
        return self.saved - sum(self._blocks) + self._entering + max(self._blocks, default=0)


class _Kernel(torch.autograd.Function):
    """A fused attention kernel: keeps queries, keys, values, its output and a number per query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise AssertionError("a plan goes forward only")


class _Kernels(TorchFunctionMode):
    """Attention and dropout on the meta device as the real device has them."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._cuda = device == "cuda"

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
    ) -> Tensor:
        plain = q.dtype == torch.bfloat16 and k.shape[-2] < _SHORT
        if self._cuda or not plain:
            return _Kernel.apply(q, k, v)  # type: ignore[no-any-return]
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, training)[0] if training and p > 0 else x


def _tensors(record: Any) -> list[Tensor]:
    """All tensors of a nested record."""
    if isinstance(record, Tensor):
        return [record]
    if isinstance(record, dict):
        return [tensor for value in record.values() for tensor in _tensors(value)]
    if hasattr(record, "__dataclass_fields__"):
        return [tensor for name in record.__dataclass_fields__ for tensor in _tensors(getattr(record, name))]
    return []
