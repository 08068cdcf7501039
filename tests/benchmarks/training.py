"""A step of training against the transformers library, and how near it comes to the machine's limit.

Both take the same weights (by way of `vlp convert`) and the same examples: real captions, 10 to 100 regions or squares
of 384 x 384 pixels, 0.15 of the words hidden. Counted are forward, loss, backward, clipping of the gradient's norm and
the optimizer (fused AdamW in both); not reading the data, and not padding them for the library. Ours is the engine of
`vlp pretrain` with all that it does in a step. The library's class is called as its documentation shows, on one padded
batch with masks, in a process of its own, as the engine sets malloc for its own. In bf16 its model is in bf16, and so
are the optimizer's weights and moments: its fastest way. Ours keeps weights and moments in fp32 beside, as each run
does; `--autocast` compares with the way of the library's Trainer, which keeps them too. Dropout is 0.1 in both; before,
their losses without dropout are compared.

`mfu` is the model's operations (three times a forward pass, on real tokens, nothing recomputed; of the last block, what
is read) per second, over the fastest matrix product of the same machine, type and number of threads: the best of five
calls, right before and right after the step, and the mean of both. What the same product keeps up for half a second,
with all that gets in its way, and the share of that are told beside it.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from tests.benchmarks.measuring import Apart, device_of, interleaved, parser_of, wait_for
from tests.benchmarks.pairs import PER_IMAGE, assembled_run, photo_pairs, region_pairs, steps_of, tokenizer
from tests.benchmarks.peers import VISUAL_WEIGHT, Inputs, Peer, Size, peer_of
from tests.benchmarks.products import Limit, best_product
from tests.benchmarks.results import Result, compared, report
from vlp.assemble import make_module
from vlp.distributed import World, world
from vlp.models.flops import Arithmetic
from vlp.models.kernels import product_type
from vlp.tasks.module import TaskModule
from vlp.train.engine import Engine
from vlp.train.optimizer import OptimizerConfig, make_optimizer
from vlp.train.zero import Precision, read_zero
from vlp.types import Batch, Losses, Step

RATE, CLIP = 1e-4, 1.0
WARM = 8
"""Examples of the first step, whose losses are compared, and which is not counted."""
CLOSE = {"fp32": 1e-5, "bf16": 1e-2}
"""How much losses may differ, as a share."""
WORDS = {"mlm": {"kind": "masked_language"}}


@dataclass(frozen=True)
class Case:
    """A model that is trained."""

    objectives: Mapping[str, Any]
    model: str | None = None
    """A shipped config, of base size; null for what the library's class of the same name is, converted."""
    changes: tuple[str, ...] = ()
    """Overrides of its config."""
    photos: bool = False
    examples: int = 32
    """Of a step, unless it is told; so many that all models have their turn in some minutes."""
    at_least: Mapping[str, float] = field(default_factory=dict)
    """How many times as fast as the library's it is held to be, by precision, at base size."""
    share: Mapping[str, float] = field(default_factory=dict)
    """What share of the limit it is held to."""


SHARE = {"fp32": 0.85, "bf16": 0.60}
CASES = {
    "visualbert": Case(
        {**WORDS, "itm": {"kind": "matching", "replace": "text", "matched_label": 0}},
        at_least={"fp32": 2.2, "bf16": 2.0},
        share=SHARE,
    ),
    "lxmert": Case(
        {
            **WORDS,
            "itm": {"kind": "matching", "replace": "text"},
            "obj": {"kind": "region_class", "labels": "hard", "over": "all", "by_confidence": True}
            | {"weight": VISUAL_WEIGHT},
            "attr": {"kind": "region_class", "of": "attribute", "labels": "hard", "over": "all", "by_confidence": True}
            | {"weight": VISUAL_WEIGHT, "inner_of": "obj"},
            "feat": {"kind": "region_feature", "distance": "smooth_l1", "average": "regions", "inner_of": "obj"}
            | {"weight": VISUAL_WEIGHT},
        },
        changes=("model.image.source.max_regions=100",),
        examples=64,
        at_least={"fp32": 2.0, "bf16": 2.0},
        share=SHARE,
    ),
    "vilt": Case(
        WORDS,
        changes=("model.image.source.fit=squash", "model.image.source.sample=null"),
        photos=True,
        examples=8,
        at_least={"fp32": 1.2, "bf16": 1.2},
    ),
    "uniter": Case(
        {
            **WORDS,
            "itm": {"kind": "matching"},
            "mrfr": {"kind": "region_feature", "tied": True},
            "mrc": {"kind": "region_class", "mean_over_classes": True},
        },
        model="uniter_base",
        changes=("model.text.vocab_size=auto", "model.image.source.classes=auto"),
        share=SHARE,
    ),
}


class Ours:
    """The engine of a run."""

    def __init__(
        self,
        task: TaskModule,
        weights: Mapping[str, float],
        precision: Precision,
        ranks: World,
    ) -> None:
        self.weights = weights
        self.engine = Engine(
            task,
            weights=weights,
            optimizer=OptimizerConfig(clip_norm=CLIP),
            precision=precision,
            zero=read_zero(None),
            world=ranks,
            seed=0,
        )

    def train(self, step: Step) -> None:
        self.engine.train_step(step, RATE)

    def loss(self, batch: Batch) -> float:
        """Without dropout."""
        losses: Losses = self.engine.inference(lambda task: task(self.engine.to_device(batch)))
        return sum(self.weights[n] * float(total) / batch.targets[n].count for n, total in losses.sums.items())


class Theirs:
    """The plain loop over the library's model."""

    def __init__(self, peer: Peer, precision: Precision, setting: Setting) -> None:
        self.peer = peer
        rounded = precision == "bf16" and not setting.autocast
        peer.model.to(setting.device, torch.bfloat16 if rounded else None).train()
        self._autocast = partial(torch.autocast, setting.device, torch.bfloat16, enabled=setting.autocast)
        self.optimizer = make_optimizer(peer.model, OptimizerConfig())
        for group in self.optimizer.param_groups:
            group["lr"] = RATE

    def given(self, batch: Batch) -> Inputs:
        batch = batch.to("cpu")  # where regions are hidden
        return self.peer.inputs(batch) | self.peer.labels(batch)

    def train(self, given: Inputs) -> None:
        self.optimizer.zero_grad()
        with self._autocast():
            loss = self.peer.loss(given)
        loss.backward()
        nn.utils.clip_grad_norm_(self.peer.model.parameters(), CLIP)
        self.optimizer.step()
        loss.item()

    def loss(self, given: Inputs) -> float:
        """Without dropout."""
        self.peer.model.eval()
        with torch.inference_mode(), self._autocast():
            loss = float(self.peer.loss(given))
        self.peer.model.train()
        return loss


class TheirSteps:
    """What is asked of the library's model in its process: steps by their number, padded beforehand."""

    def __init__(self, setting: Setting, name: str, precision: Precision, batches: Sequence[Batch]) -> None:
        self._theirs = Theirs(peer_of(name, setting.size, setting.dropout), precision, setting)
        self._given = [self._theirs.given(batch) for batch in batches]
        self._device = setting.device

    def train(self, number: int) -> None:
        self._theirs.train(self._given[number])
        wait_for(self._device)

    def loss(self, number: int) -> float:
        return self._theirs.loss(self._given[number])


@dataclass(frozen=True)
class Setting:
    """How much is measured, and on what."""

    size: Size
    examples: int | None
    """Of a step; None for what the case has."""
    repeats: int
    dropout: float
    device: str
    folder: Path
    autocast: bool = False
    """Whether the library's weights stay in fp32, and products alone are in bf16."""

    def examples_of(self, case: Case) -> int:
        return self.examples or case.examples


def measure(name: str, precision: Precision, setting: Setting, ranks: World) -> list[Result]:
    """The results of one model in one precision."""
    case = CASES[name]
    peer = None if case.model else peer_of(name, setting.size, setting.dropout)
    values, overrides = _values(case, peer, setting), _overrides(case, setting)
    assembled = assembled_run(values, overrides)
    against = None if peer is None else f"a training step of transformers' {type(peer.model).__name__}"
    del peer
    few = {**values, "batch": {**values["batch"], "size": WARM}}
    steps = steps_of(assembled_run(few, overrides), 1) + steps_of(assembled, setting.repeats + 1)
    first = steps.pop()
    batches = [step.micro_batches[0] for step in steps]
    theirs = None
    if against:
        theirs = Apart(TheirSteps, setting, name, precision, batches)
    weights = assembled.task.weights
    ours = Ours(make_module(assembled), weights, precision, ranks)
    size = "base" if case.model else setting.size
    called = f"{name}_{size}/{precision}"
    calls: dict[str, Callable[[], object]] = {}
    tokens = statistics.mean(batch.tokens for batch in batches[1:])
    figures: dict[str, float | str] = {"examples": setting.examples_of(case), "real tokens": tokens}
    if theirs is not None:
        figures |= _losses(ours.loss(batches[0]), theirs("loss", 0), precision)
        figures["padded tokens"] = statistics.mean(batch.padded_tokens for batch in batches[1:])
        calls["theirs"] = Turns([lambda n=number: theirs("train", n) for number in range(len(steps))])
    # Memory that a run takes from the system once, and keeps; the library's step takes it and gives it back each time.
    ours.train(first)
    limit = Limit(best_product(setting.device, torch.bfloat16 if precision == "bf16" else torch.float32))
    calls["before"] = limit.measure
    calls["vlp"] = Turns([lambda s=step: ours.train(s) for step in steps])
    calls["after"] = limit.measure
    seconds = interleaved(calls, setting.repeats, device=setting.device, warm=1)
    bars = size == "base" and setting.device == "cpu"
    results = []
    if theirs is not None:
        theirs.close()
        results.append(
            compared(
                f"train/{called}" + "/autocast" * setting.autocast,
                seconds,
                against=str(against) + " under autocast" * setting.autocast,
                count=tokens,
                unit="tokens",
                at_least=case.at_least.get(precision) if bars and not setting.autocast else None,
                figures=figures,
            )
        )
    arithmetic = Arithmetic(assembled.config.model)
    work = [sum(3 * arithmetic.forward(batch) for batch in step.micro_batches) for step in steps[1:]]
    at_least = case.share.get(precision) if bars else None
    results.append(limit.share(f"mfu/{called}", work, seconds["vlp"], at_least))
    ours.engine.close()
    for result in results:
        print(f"{result.name}: {result.ratio:.3f} ({result.lowest:.3f} to {result.highest:.3f})", flush=True)
    return results


class Turns:
    """Calls of which each turn makes the next."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self._calls = iter(calls)

    def __call__(self) -> None:
        next(self._calls)()


def _losses(own: float, other: float, precision: Precision) -> dict[str, float | str]:
    """Both losses of one batch; equal, or nothing that follows is a comparison."""
    apart = abs(own - other) / abs(other)
    if not apart <= CLOSE[precision]:
        raise SystemExit(f"losses differ: ours {own}, theirs {other}")
    return {"loss, vlp": own, "loss, theirs": other, "apart": apart}


def _values(case: Case, peer: Peer | None, setting: Setting) -> dict[str, Any]:
    if peer is None:
        model: str = str(case.model)
    else:
        own = setting.folder / type(peer).__name__
        own.mkdir(exist_ok=True)
        model = str(peer.converted(own))
    images = -(-setting.examples_of(case) * (setting.repeats + 1) // PER_IMAGE)
    folder = setting.folder / f"{images}_images"
    data = folder / ("photos" if case.photos else "regions")
    if not data.exists():
        (photo_pairs if case.photos else region_pairs)(folder, images)
    return {
        "model": model,
        "tokenizer": str(tokenizer(setting.folder)),
        "task": {"name": "pretrain", "objectives": case.objectives, "on_mismatched": True},
        "data": {"train": str(data)},
        "batch": {"size": setting.examples_of(case), "micro_tokens": 1 << 30},
    }


def _overrides(case: Case, setting: Setting) -> list[str]:
    dropout = [f"model.{key}={setting.dropout}" for key in ("dropout", "attention_dropout")]
    return [*case.changes, *dropout]


def _precisions(given: Namespace, device: str) -> tuple[Precision, ...]:
    if given.autocast:
        if given.precision == "fp32":
            raise SystemExit("--autocast is of bf16; leave out --precision fp32")
        return ("bf16",)
    if given.precision:
        return (given.precision,)
    if product_type(torch.empty(0, dtype=torch.bfloat16, device=device)) != torch.bfloat16:
        print("bf16: left out, this CPU has no products of it; the library takes minutes for a step (--precision bf16)")
        return ("fp32",)
    return ("fp32", "bf16")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{', '.join(CASES)} (default: all)")
    parser.add_argument("--size", choices=get_args(Size), default="base")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: both, where both are multiplied")
    parser.add_argument("--examples", type=int, help="of a step (default: 64 for LXMERT, 8 for ViLT, 32 for others)")
    parser.add_argument("--autocast", action="store_true", help="the library in bf16 with its weights in fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.1)
    given = parser.parse_args()
    unknown = [name for name in given.models if name not in CASES]
    if unknown:
        raise SystemExit(f"MODEL: '{unknown[0]}' is not known, it should be one of {', '.join(CASES)}")
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder, world() as ranks:
        device = device_of(given.device)
        precisions = _precisions(given, device)
        setting = Setting(
            given.size, given.examples, given.repeats, given.dropout, device, Path(folder), given.autocast
        )
        for name in given.models or CASES:
            for precision in precisions:
                results += measure(name, precision, setting, ranks)
                gc.collect()
    report("training", __doc__, results, device=device)


if __name__ == "__main__":
    main()
