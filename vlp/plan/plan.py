"""A plan: everything that is worked out for a run on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vlp.errors import ConfigError
from vlp.objectives.itc import ContrastConfig
from vlp.plan.activations import Device, Kept, kept_of, meta_task
from vlp.plan.cluster import Cluster, Network, Reading, Work, network_of, reading_of, work_of
from vlp.plan.ground import Ground
from vlp.plan.memory import STAGES, Memory, Setup, Trained, memory_of
from vlp.run import RunConfig
from vlp.tasks.pretrain import PretrainConfig
from vlp.train.zero import buckets, read_zero, stage_of, zero_file

GIB = 1 << 30
_DRIVER, _SPARE = 1 * GIB, 0.95
"""What the driver and NCCL take of a GPU, and the share of the rest that can be filled without splitting hairs."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to spread a run's memory."""

    name: str
    """As `deepspeed` names it."""
    memory: Memory
    fits: int
    """Largest `batch.micro_tokens` with which it fits; 0 if none does."""
    chosen: bool
    """Whether it is the config's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `vlp plan` shows."""

    ground: Ground
    cluster: Cluster
    trained: Trained
    total: int
    """All parameters."""
    micro_batches: int
    """Of a rank and step."""
    micro_tokens: int
    """Of the largest micro-batch."""
    ways: list[Way]
    work: Work
    seconds: float
    """Of a step."""
    network: list[Network]
    reading: Reading
    start: int
    """Bytes that the ranks of a node take on the CPU's side while they start: each makes the whole model in fp32."""

    @property
    def chosen(self) -> Way:
        """The config's own way."""
        return next(way for way in self.ways if way.chosen)


def make_plan(ground: Ground, cluster: Cluster, device: Device = "cuda") -> Plan:
    """The plan of a run.

    Args:
        device: of the ranks; on `cpu` the memory is that of a process above what imports take.
    Raises:
        ConfigError: the global batch has fewer examples than there are ranks.
    """
    config = ground.config
    if config.batch.size < cluster.gpus:
        raise ConfigError(
            f"batch.size is {config.batch.size}, fewer examples than the {cluster.gpus} ranks have: use fewer GPUs, or "
            "a larger batch"
        )
    modules = [meta_task(config, view) for view in ground.views]
    slots = -(-config.batch.size // cluster.gpus)
    batches = [ground.micro_batch(view, config.batch.micro_tokens, slots) for view in ground.views]
    kept = max((kept_of(*pair, device) for pair in zip(modules, batches, strict=True)), key=lambda found: found.total)
    parameters = list(modules[0].parameters())
    sizes = [parameter.numel() for parameter in parameters if parameter.requires_grad]
    trained = Trained(sum(sizes), sum(p.numel() for p in parameters) - sum(sizes), max(sizes))
    work = work_of(ground)
    seconds = work.seconds(cluster)
    tokens = max(ground.counted(*pair) for pair in zip(ground.views, batches, strict=True))
    micro_batches = max(1, -(-work.tokens // cluster.gpus // max(config.batch.micro_tokens, tokens)))
    total = sum(parameter.numel() for parameter in parameters)
    return Plan(
        ground=ground,
        cluster=cluster,
        trained=trained,
        total=total,
        micro_batches=micro_batches,
        micro_tokens=tokens,
        ways=list(_ways(config, cluster, trained, kept, tokens, micro_batches, device)),
        work=work,
        seconds=seconds,
        network=network_of(trained.parameters, config.precision, micro_batches, cluster, seconds),
        reading=reading_of(ground, cluster, seconds),
        start=4 * total * -(-cluster.gpus // cluster.nodes),
    )


def _ways(
    config: RunConfig,
    cluster: Cluster,
    trained: Trained,
    kept: Kept,
    tokens: int,
    micro_batches: int,
    device: Device,
) -> Iterator[Way]:
    """The stages, with and without offload, and the config's own way."""
    zero = read_zero(zero_file(config.deepspeed))
    section: dict[str, Any] = zero.get("zero_optimization", {})
    own = (stage_of(zero), _offloads(section, "offload_optimizer"), _offloads(section, "offload_param"))
    base = Setup(
        ranks=cluster.gpus,
        stage=0,
        precision=config.precision,
        several=micro_batches > 1,
        means=means_of(config),
    )
    shapes = [(stage, False, False) for stage in STAGES] + [(2, True, False), (3, True, True)]
    returned = device == "cuda"  # on a CPU, a process keeps what it has once had
    room = int((cluster.memory * GIB - _DRIVER) * _SPARE)
    for shape in shapes if own in shapes else [*shapes, own]:
        stage, optimizer, weights = shape
        sizes = buckets(section, stage, cuda=device == "cuda")
        setup = replace(
            base,
            stage=stage,
            offload_optimizer=optimizer,
            offload_weights=weights,
            bucket=sizes["reduce_bucket_size"],
            prefetch=sizes["stage3_prefetch_bucket_size"],
        )
        memory = partial(_memory, trained, kept, tokens, setup, returned)
        name = f"zero{stage}" + ("_offload" if optimizer or weights else "")
        yield Way(name, memory(tokens), _largest(memory, room), shape == own)


def means_of(config: RunConfig) -> int:
    """Running means of the weights that a run keeps: for evaluation, and as contrast's momentum model."""
    task = config.task
    own = task.objectives.values() if isinstance(task, PretrainConfig) else ()
    slow = any(isinstance(each, ContrastConfig) and each.momentum for each in own)
    return int(config.ema is not None) + int(slow)


def _memory(trained: Trained, kept: Kept, tokens: int, setup: Setup, returned: bool, size: int) -> Memory:
    """With micro-batches of another size than the one of so many tokens whose `kept` is known."""
    scaled = Kept(kept.inputs * size // tokens, kept.saved * size // tokens, kept.largest * size // tokens)
    return memory_of(trained, scaled, setup, returned=returned)


def _offloads(section: dict[str, Any], key: str) -> bool:
    return bool((section.get(key) or {}).get("device", "none") != "none")


def _largest(memory: Callable[[int], Memory], room: int, most: int = 1 << 22) -> int:
    """The most tokens, up to `most` and to 1 %, whose memory fits; 0 if none does."""
    if memory(1).peak > room:
        return 0
    low, high = 1, most
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if memory(middle).peak <= room else (low, middle)
    return low
