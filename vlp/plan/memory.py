"""Memory of one rank at each ZeRO stage, by what it is for.

`P` parameters are trained. Adam keeps two moments and, below fp32, ZeRO a master copy: 12 bytes a parameter (8 in fp32,
where the weights are their own master), which stages 1-3 divide by the ranks; stage 2 divides gradients too, stage 3
the weights (Rajbhandari et al. 2020, arXiv 1910.02054, section 3). To it come what the implementation adds: buckets in
which gradients are reduced, and buffers of stage 3. Those were found by measuring (tests/benchmarks/memory.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from vlp.plan.activations import Kept
from vlp.train.dataparallel import TOGETHER
from vlp.train.zero import BUCKET, PREFETCH, Precision

STAGES = (0, 1, 2, 3)
_LIVE = 1_000_000_000
_PROCESS = 90 << 20
"""What a process takes up beside tensors: code that is loaded late, kernels' scratch space, small blocks that stay."""
_GATHERING = 55 << 20
"""And at stage 3 on a CPU: its hooks' records, and the gaps between what it gathers. Seen with the tiny model."""
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
    prefetch: int = PREFETCH
    """Numbers of weights that stage 3 gathers ahead."""


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
    # Stages 1 (below fp32) and 3 have their gradients' buffers all the time.
    always = setup.several or setup.stage == 3 or (setup.stage == 1 and setup.precision != "fp32")
    behind = 0 if returned else kept.saved
    moments = {  # bytes of activations, of gradients and of all else at what may be the worst moment
        "end of forward": (kept.total, held if always else 0, kept.largest + _beside_forward(model, setup, item)),
        "backward": (behind, held, _reduction(model, setup, item, returned)),
        "step": (behind, held, _beside_step(model, shard, setup, item, returned)),
    }
    activations, gradients, buffers = max(moments.values(), key=sum)
    process = _PROCESS + (_GATHERING if setup.stage == 3 and not returned else 0)
    return Memory(weights, states, gradients, activations, buffers + process, host)


def _states(parameters: int, shard: int, setup: Setup) -> int:
    numbers = parameters if setup.stage == 0 else shard
    # Stages 1 to 3 keep a master copy in fp32 too; stage 0 steps the weights themselves.
    master = setup.precision != "fp32" or setup.stage > 0
    return numbers * (12 if master else 8)


def _gradients(parameters: int, shard: int, setup: Setup) -> int:
    """Bytes of gradients from the end of one backward to the step."""
    if setup.stage == 0:
        # In bf16 what is added up, over micro-batches or ranks, is so in fp32.
        added = setup.precision == "bf16" and (setup.several or setup.ranks > 1)
        return parameters * (4 if added else _ITEM[setup.precision])
    if setup.stage == 1 and (setup.precision != "fp32" or setup.several):
        return parameters * 4  # micro-batches add up there, in fp32
    return shard * 4


def _live(model: Trained, setup: Setup, item: int) -> int:
    """Stage 3: whole weights that are kept for their next use, up to DeepSpeed's `stage3_max_live_parameters`."""
    return item * min(_LIVE, model.parameters) if setup.ranks > 1 else 0


def _beside_forward(model: Trained, setup: Setup, item: int) -> int:
    """What stands beside the activations when forward ends and backward begins: its first gradient is that of the word
    table, where a head is tied to it."""
    if setup.stage != 3:
        return item * model.largest
    # As they arrived, beside the weights made of them; one rank alone has them whole.
    ahead = item * min(setup.prefetch, model.parameters) if setup.ranks > 1 else 0
    return _bucket(model, setup, item) + ahead + item * model.largest + _live(model, setup, item)


def _bucket(model: Trained, setup: Setup, item: int) -> int:
    return item * min(setup.bucket, model.parameters)


def _beside_step(model: Trained, shard: int, setup: Setup, item: int, returned: bool) -> int:
    """What the step takes: at stage 0 a bucket that is added up over ranks, or gradients that become fp32; at stage 3
    its gradients as one tensor, and on a CPU what weights were gathered in."""
    if setup.stage == 0:
        added = min(setup.bucket, model.parameters) if setup.ranks > 1 else 0
        made = 0 if setup.precision == "fp32" else max(TOGETHER, model.largest)
        return 4 * min(model.parameters, max(added, made))
    if setup.stage != 3 or setup.offload_optimizer:
        return 0
    return 4 * shard + _bucket(model, setup, item) + (0 if returned else _live(model, setup, item))


def _reduction(model: Trained, setup: Setup, item: int, returned: bool) -> int:
    """What adding gradients up over ranks and stepping take at their worst."""
    numbers = min(setup.bucket, model.parameters)
    bucket, largest = _bucket(model, setup, item), 4 * model.largest
    if setup.stage == 0:
        if setup.precision == "fp16":
            return 4 * model.parameters  # all of them, for the step
        return 0 if setup.precision == "fp32" or not setup.several else item * model.parameters
    if setup.stage == 3:
        # Put in order for the ranks, and the backend's copy of that; a tensor larger than a bucket goes alone. Below
        # fp32 the rank's part becomes fp32. Weights of what is in the bucket are gone, if their memory is given back.
        most = max(numbers, model.largest)
        copies = 2 * item * most + (0 if item == 4 else 4 * most // setup.ranks)
        live = _live(model, setup, item) - (item * numbers if returned and setup.ranks > 1 else 0)
        return bucket + copies + max(live, 0) + item * model.largest
    if setup.precision == "fp32":
        # Three buckets at once; not more than all gradients and a second time those that other ranks own.
        return min(3 * bucket, item * model.parameters * (2 * setup.ranks - 1) // setup.ranks)
    if setup.stage == 1:
        return (2 * item + 4) * model.parameters + largest  # whatever the bucket: seen with 50 and 500 million
    return bucket + 4 * numbers  # fp32 gradients beside their bucket
