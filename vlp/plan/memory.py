"""Memory of one rank at each ZeRO stage, by what it is for.

`P` parameters are trained. Adam keeps two moments and, below fp32, ZeRO a master copy: 12 bytes a parameter (8 in fp32,
where the weights are their own master), which stages 1-3 divide by the ranks; stage 2 divides gradients too, stage 3
the weights (Rajbhandari et al. 2020, arXiv 1910.02054, section 3). To it come what the implementation adds: buckets in
which gradients are reduced, and buffers of stage 3. Those were found by measuring (tests/benchmarks/memory.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from vlp.plan.activations import Kept
from vlp.train.zero import BUCKET, Precision

STAGES = (0, 1, 2, 3)
_LIVE = 1_000_000_000
_PROCESS = 90 << 20
"""What a process takes up beside tensors: code that is loaded late, kernels' scratch space, small blocks that stay."""
_ITEM = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True)
class Setup:
    """How a run is spread."""

    ranks: int
    stage: int
    precision: Precision
    offload_optimizer: bool = False
    offload_weights: bool = False
    several: bool = False
    """Whether a step has several micro-batches, so that gradients lie there during forward."""
    means: int = 0
    """Running means of the weights that are kept: for evaluation, or as a momentum model."""
    bucket: int = BUCKET
    """Numbers in a bucket of gradients."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What of a model counts for memory."""

    parameters: int
    """That are trained."""
    frozen: int
    largest: int
    """Numbers in the largest tensor that is trained."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a rank."""

    weights: int
    states: int
    """Master weights, moments, a running mean of weights."""
    gradients: int
    activations: int
    """Of one micro-batch, its inputs included."""
    buffers: int
    """What stands in addition at the worst moment of a step."""
    host: int
    """On the CPU's side: what is offloaded."""

    @property
    def peak(self) -> int:
        """The most at once on the device."""
        return self.weights + self.states + self.gradients + self.activations + self.buffers


def memory_of(model: Trained, kept: Kept, setup: Setup, *, returned: bool = True) -> Memory:
    """The memory of a rank at the worst moment of a step.

    Args:
        kept: of the largest micro-batch.
        returned: whether what backward has freed can be used for something else, or (on a CPU) stays with
            the process.
    """
    item = _ITEM[setup.precision]
    shard = -(-model.parameters // setup.ranks)
    weights = item * (model.frozen + (shard if setup.stage == 3 else model.parameters))
    mean = 4 * (model.parameters if setup.stage == 0 else shard)
    states = _states(model.parameters, shard, setup) + setup.means * mean
    held, host = _gradients(model.parameters, shard, setup), 0
    if setup.offload_optimizer:
        host, states = states + 4 * shard + item * shard, 0
        held = 0
    if setup.offload_weights:
        host, weights = host + weights, item * model.frozen
    forward = kept.total + kept.largest + _beside_forward(model, setup, item) + (held if setup.several else 0)
    behind = 0 if returned else kept.saved
    backward = held + behind + _reduction(model, setup, item)
    # Stages 1 (below fp32) and 3 have their gradients' buffers all the time.
    always = held if setup.stage == 3 or (setup.stage == 1 and setup.precision != "fp32") else 0
    forward += 0 if setup.several else always
    # The worst moment is the end of forward, with all activations, or that of backward, with all gradients.
    worst = max(forward, backward)
    activations = kept.total if forward >= backward else behind
    gradients = held if backward > forward or setup.several else always
    return Memory(weights, states, gradients, activations, worst - activations - gradients + _PROCESS, host)


def _states(parameters: int, shard: int, setup: Setup) -> int:
    numbers = parameters if setup.stage == 0 else shard
    # Stages 1 and 2 keep a master copy in fp32 too; stages 0 and 3 step the weights themselves.
    master = setup.precision != "fp32" or setup.stage in (1, 2)
    return numbers * (12 if master else 8)


def _gradients(parameters: int, shard: int, setup: Setup) -> int:
    """Bytes of gradients from the end of one backward to the step."""
    if setup.stage == 0:
        return parameters * _ITEM[setup.precision]
    if setup.stage == 1 and (setup.precision != "fp32" or setup.several):
        return parameters * 4  # micro-batches add up there, in fp32
    if setup.stage == 3:
        return shard * 8  # a buffer in which they gather, and one that the step reads
    return shard * 4


def _live(model: Trained, setup: Setup, item: int) -> int:
    """Stage 3: whole weights that are kept for their next use, up to DeepSpeed's `stage3_max_live_parameters`."""
    return item * min(_LIVE, model.parameters) if setup.ranks > 1 else 0


def _beside_forward(model: Trained, setup: Setup, item: int) -> int:
    """What stands beside the activations when forward ends and backward begins: its first gradient is that of the word
    table, where a head is tied to it."""
    if setup.stage != 3:
        return item * model.largest
    bucket = min(setup.bucket, model.parameters) * item
    return bucket + item * model.largest + _live(model, setup, item)


def _reduction(model: Trained, setup: Setup, item: int) -> int:
    """What adding gradients up over ranks and stepping take at their worst."""
    numbers = min(setup.bucket, model.parameters)
    bucket, largest = item * numbers, 4 * model.largest
    if setup.stage == 0:
        # In fp32 all gradients as one tensor, where there are ranks to add up over; else in fp32, for the step.
        return 0 if setup.ranks == 1 and setup.precision == "fp32" else 4 * model.parameters
    if setup.stage == 3:
        return 2 * bucket + (_live(model, setup, item) or bucket) + largest
    if setup.precision == "fp32":
        # Three buckets at once; not more than all gradients and a second time those that other ranks own.
        return min(3 * bucket, item * model.parameters * (2 * setup.ranks - 1) // setup.ranks)
    if setup.stage == 1:
        return (2 * item + 4) * model.parameters + largest  # whatever the bucket: seen with 50 and 500 million
    return bucket + 4 * numbers  # fp32 gradients beside their bucket
