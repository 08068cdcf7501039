"""What a run takes on a cluster: steps, tokens, operations, hours, network, shards, loader workers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlp.models.flops import Arithmetic
from vlp.plan.ground import Ground
from vlp.plan.memory import STAGES
from vlp.tasks.pretrain import PretrainTask
from vlp.train.zero import Precision

PEAK_TFLOPS = 312.0
"""An A100's in bf16 without sparsity, where no other is given."""
MFU = 0.4
"""Share of the peak that is reached, where no other is given: what large dense models reach."""
_SHARD = 500 << 20
"""Bytes of a shard that is read well from object stores, at most."""
_IMAGES, _REGIONS = 400, 1500
"""Examples that a loader worker makes a second, photos decoded or regions read: see docs/data.md; on the safe side."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where a run is to go."""

    gpus: int
    nodes: int
    memory: float
    """GiB of a GPU."""
    peak: float
    """TFLOPS of a GPU in the run's precision."""
    mfu: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a run does."""

    steps: int | None
    """None where neither the config nor the data tell."""
    examples: int
    """Of a step."""
    tokens: int
    """Of a step."""
    operations: float
    """Of a step, forward and backward; what is recomputed does not count."""
    spent: float
    """Of a step, with what is recomputed."""

    def seconds(self, cluster: Cluster) -> float:
        """Of a step."""
        return self.spent / (cluster.gpus * cluster.peak * 1e12 * cluster.mfu)


def work_of(ground: Ground) -> Work:
    """What a run does, the mean over its kinds of steps."""
    config, size = ground.config, ground.config.batch.size
    arithmetic = Arithmetic(config.model)
    tokens = operations = 0.0
    for view, share in zip(ground.views, _shares(ground), strict=True):
        batch = ground.micro_batch(view, 1 << 30, slots=8)
        operations += share * 3 * arithmetic.forward(batch) * size / 8
        tokens += share * batch.tokens * size / 8
    # A block is run again in backward: its forward is a third of all that it costs. What is not (heads, a last block
    # that works out only what is read) is little.
    again = 4 / 3 if config.model.checkpointing else 1.0
    return Work(_steps(ground), size, round(tokens), operations, operations * again)


def _shares(ground: Ground) -> list[float]:
    task = ground.task
    if len(ground.views) == 1 or not isinstance(task, PretrainTask):
        return [1.0 / len(ground.views)] * len(ground.views)
    ratios = [own.ratio for own in task.config.objectives.values()]
    return [ratio / sum(ratios) for ratio in ratios]


def _steps(ground: Ground) -> int | None:
    run = ground.config.run
    if run.steps is not None:
        return run.steps
    if ground.examples is None or run.epochs is None:
        return None
    return max(1, math.ceil(run.epochs * ground.examples / ground.config.batch.size))


@dataclass(frozen=True, slots=True)
class Network:
    """What a rank sends in a step."""

    stage: int
    bytes: float
    bandwidth: float
    """Bytes per second per rank at which sending takes as long as computing, so that it can hide behind it."""


def network_of(
    parameters: int, precision: Precision, micro_batches: int, cluster: Cluster, seconds: float
) -> list[Network]:
    """Traffic per ZeRO stage; a ring sends (n - 1) / n of a tensor to scatter or gather it, twice that to add it up
    everywhere.

    Args:
        seconds: of a step.
    """
    item = 4 if precision == "fp32" else 2
    added = 2 if precision == "fp16" else 4  # stage 0 adds up in fp32, but for DeepSpeed's in fp16
    part = (cluster.gpus - 1) / cluster.gpus * parameters
    found = {
        0: 2 * added * part,
        1: 2 * 4 * part + item * part,  # gradients in fp32, then the weights
        2: item * part * (2 * micro_batches + 1),  # gradients after every micro-batch, then the weights
        3: item * part * 3 * micro_batches,  # weights for forward and for backward, and gradients
    }
    return [Network(stage, found[stage], found[stage] / max(seconds, 1e-9)) for stage in STAGES]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the data side needs."""

    groups: int
    """`data.groups` with which every node reads its own shards."""
    shards: int
    """As many as fill each group's first block, none too large."""
    workers: int
    """`data.workers`, per rank."""
    rate: float
    """Examples per second and rank that must be made."""


def reading_of(ground: Ground, cluster: Cluster, seconds: float) -> Reading:
    """Shards and loader workers that suffice.

    Args:
        seconds: of a step.
    """
    groups = math.gcd(cluster.nodes, ground.config.batch.size)
    shards = max(groups * ground.config.data.block_shards, math.ceil((ground.bytes or 0) / _SHARD))
    rate = ground.config.batch.size / cluster.gpus / max(seconds, 1e-9)
    each = _IMAGES if ground.task.wants_image else _REGIONS
    return Reading(groups, shards, max(1, math.ceil(rate / each)), rate)
