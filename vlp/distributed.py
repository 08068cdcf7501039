"""The ranks of a run: who am I, and the few collectives that the loop needs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vlp.errors import TrainingError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """This process among all."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes logs."""
        return self.rank == 0


def launched_by() -> tuple[int, int, int]:
    """(rank, world size, local rank) as the launcher's environment tells; one process where there is none."""
    return tuple(int(os.environ.get(name, default)) for name, default in _VARIABLES)  # type: ignore[return-value]


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@contextmanager
def world(timeout_minutes: float = 30) -> Iterator[World]:
    """Join the ranks, NCCL where there is a GPU and gloo elsewhere, and leave them at the end.

    A caller that had joined before stays joined, and may run several trainings one after the other: DeepSpeed keeps the
    groups of its first one, so a process that left cannot train again.

    Args:
        timeout_minutes: after which a collective that hangs ends the run.
    Raises:
        TrainingError: the other ranks cannot be reached, or this rank has no GPU of its own.
    """
    import torch.distributed as dist

    before = dist.is_initialized()
    joined = start(timeout_minutes)
    try:
        yield joined
    finally:
        if not before:
            stop()


def start(timeout_minutes: float = 30) -> World:
    """What `world` does on entering; `stop` is its end."""
    import torch

    rank, size, local_rank = launched_by()
    cuda = torch.cuda.is_available()
    if cuda:
        if local_rank >= torch.cuda.device_count():
            raise TrainingError(
                f"local rank {local_rank} has no GPU of its own (this machine has {torch.cuda.device_count()}); "
                "start fewer processes"
            )
        torch.cuda.set_device(local_rank)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed reads it once, when it is imported
    os.environ.setdefault("LOCAL_RANK", str(local_rank))  # DeepSpeed insists on it, in a single process too
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if not torch.distributed.is_initialized():
        _join(rank, size, device, timedelta(minutes=timeout_minutes))
    return World(rank, size, local_rank, device)


def _join(rank: int, size: int, device: torch.device, timeout: timedelta) -> None:
    import torch.distributed as dist

    options: dict[str, Any] = {"timeout": timeout, "rank": rank, "world_size": size}
    if size == 1:
        options["store"] = dist.HashStore()  # type: ignore[attr-defined]  # no port, so nothing to collide with
    elif device.type == "cuda":
        options["device_id"] = device
    try:
        if size > 1:
            options["store"] = _meeting(rank, size, timeout)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **options)
    except (dist.DistError, ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise TrainingError(
            f"rank {rank} of {size} on {socket.gethostname()} cannot join the others at {where}: {error}; "
            "check MASTER_ADDR, MASTER_PORT and that all ranks were started"
        ) from None


def _meeting(rank: int, size: int, timeout: timedelta) -> Any:
    """Where ranks leave their addresses for each other.

    torchrun keeps its store over an elastic restart (torch 2.15), with the addresses of ranks that are gone; those of
    each start stand under a name of their own.
    """
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))  # type: ignore[attr-defined]
    return dist.PrefixStore(  # type: ignore[attr-defined]
        f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
    )


def stop() -> None:
    """Leave the process group; without it a finished run sometimes exits with 1."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


class Board:
    """Where each rank says what it does, and reads what the others said without their help.

    It lies in the store by which the ranks met, which rank 0 or torchrun keeps: a process that hangs there answers
    nobody, and then `read` does not return.
    """

    def __init__(self, where: World) -> None:
        import torch.distributed as dist

        self._rank, self._size = where.rank, where.size
        self._store = dist.PrefixStore("board", dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]

    def post(self, text: str) -> None:
        self._store.set(str(self._rank), text)

    def read(self) -> dict[int, str]:
        """By rank; those that have said nothing yet are missing."""
        ranks = [rank for rank in range(self._size) if self._store.check([str(rank)])]
        return {rank: self._store.get(str(rank)).decode() for rank in ranks}


def is_broken(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)  # gloo raises plain RuntimeErrors


def sum_over_ranks(values: Tensor) -> Tensor:
    """The tensor, summed over ranks in place."""
    import torch.distributed as dist

    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_rows(own: Tensor, where: World) -> Tensor:
    """The rows of all ranks, [rows, ...], one rank after the other, on every rank; ranks may have different numbers."""
    import torch
    import torch.distributed as dist

    if where.size == 1:
        return own
    counts = [torch.zeros(1, dtype=torch.int64, device=where.device) for _ in range(where.size)]
    dist.all_gather(counts, torch.tensor([len(own)], device=where.device))
    lengths = [int(count) for count in counts]
    padded = own.new_zeros(max(lengths), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def barrier(where: World) -> None:
    """Wait for all ranks."""
    import torch

    # An all-reduce and a read: NCCL's own barrier guesses the device and warns.
    sum_over_ranks(torch.zeros(1, device=where.device)).item()


def gather_lists(records: list[Any], where: World) -> list[Any]:
    """The lists of all ranks, joined in the order of ranks, on rank 0; empty elsewhere. Plain data only."""
    import torch.distributed as dist

    if where.size == 1:
        return records
    parts: list[Any] | None = [None] * where.size if where.is_main else None
    dist.gather_object(records, parts, dst=0)
    return [record for part in parts or [] for record in part]


def share(record: Any, where: World) -> list[Any]:
    """One record of each rank, on every rank. Plain data only."""
    import torch.distributed as dist

    if where.size == 1:
        return [record]
    records: list[Any] = [None] * where.size
    dist.all_gather_object(records, record)
    return records
