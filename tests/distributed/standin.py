"""A tiny task with a real task's interface: two objectives, an embedding, a norm, heads that may see zero rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlp.data.packing import join, pack
from vlp.distributed import World
from vlp.train.ema import EmaConfig
from vlp.train.engine import Engine
from vlp.train.optimizer import OptimizerConfig
from vlp.train.zero import read_zero, zero_file
from vlp.types import Batch, Losses, RegionBatch, Step, Targets, TextBatch

WORDS, WIDTH, CLASSES = 11, 6, 3
WEIGHTS = {"words": 3.0, "match": 1.5}
EPSILON = 0.1  # so large that AdamW's step depends on the gradient's size, hence on clipping


class StandIn(nn.Module):
    """Guesses a word at target positions and a class per example; odd sizes, so that partitions need padding."""

    def __init__(self, dropout: float = 0.0, seed: int = 0, frozen: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(WORDS, WIDTH)
            self.image = nn.Linear(5, WIDTH)
            self.body = nn.Linear(WIDTH, WIDTH)
            self.norm = nn.LayerNorm(WIDTH)
            self.words = nn.Linear(WIDTH, WORDS)
            self.match = nn.Linear(WIDTH, CLASSES)
        self.dropout = nn.Dropout(dropout)
        self.offset = 0.0  # added to a loss: not finite while the gradients are
        self.register_buffer("statistic", torch.arange(4.0))
        if frozen:
            self.image.weight.requires_grad_(False)

    def forward(self, batch: Batch) -> Losses:
        assert isinstance(batch.image, RegionBatch)
        text_NH = self.embed(batch.text.ids_N)
        image_MH = self.image(batch.image.features_MD)
        joint_JH = torch.cat([text_NH, image_MH])[batch.joint_rows_J]
        joint_JH = self.norm(self.dropout(torch.tanh(self.body(joint_JH))) + joint_JH)
        text_NH = joint_JH[batch.split_rows_J][: len(text_NH)]
        examples = torch.repeat_interleave(torch.arange(len(batch)), batch.joint.lengths_B)
        pooled_BH = joint_JH.new_zeros(len(batch), WIDTH).index_add(0, examples, joint_JH)
        words, match = batch.targets["words"], batch.targets["match"]
        scores_KV = self.words(text_NH[words.positions_K]).float()
        scores_KC = self.match(pooled_BH[match.positions_K]).float()
        sums = {
            "words": nn.functional.cross_entropy(scores_KV, words.values["labels"], reduction="sum"),
            "match": nn.functional.cross_entropy(scores_KC, match.values["labels"], reduction="sum") + self.offset,
        }
        right = (scores_KV.argmax(-1) == words.values["labels"]).sum()
        return Losses(sums, {"words/accuracy": (right, words.count)})


def example(number: int) -> dict[str, Tensor]:
    """Example `number`: 3-8 words, 0-4 regions, 0-3 masked words, one class."""
    draw = torch.Generator().manual_seed(1000 + number)
    length = int(torch.randint(3, 9, (), generator=draw))
    return {
        "ids": torch.randint(WORDS, (length,), generator=draw),
        "features": torch.randn(int(torch.randint(5, (), generator=draw)), 5, generator=draw),
        "masked": torch.randperm(length, generator=draw)[: int(torch.randint(4, (), generator=draw))],
        "labels": torch.randint(WORDS, (length,), generator=draw),
        "class": torch.randint(CLASSES, (1,), generator=draw),
    }


def batch_of(numbers: list[int], objectives: tuple[str, ...] = ("words", "match")) -> Batch:
    """A micro-batch of some examples (or none), with targets of some objectives."""
    examples = [example(number) for number in numbers]
    text = pack([len(e["ids"]) for e in examples])
    image = pack([len(e["features"]) for e in examples])
    joint, joint_rows_J, split_rows_J = join(text, image)
    starts = text.starts_B1.tolist()
    empty, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 5)
    labels, positions = [empty], [empty]
    if "words" in objectives:
        labels += [e["labels"][e["masked"]] for e in examples]
        positions += [e["masked"] + start for e, start in zip(examples, starts, strict=False)]
    classes = [empty] + [e["class"] for e in examples if "match" in objectives]
    masked = torch.cat(positions)
    words = Targets(masked, {"labels": torch.cat(labels)}, float(len(masked)))
    match = Targets(torch.arange(len(classes) - 1), {"labels": torch.cat(classes)}, float(len(classes) - 1))
    places = torch.zeros(text.tokens, dtype=torch.int64)
    return Batch(
        text=TextBatch(torch.cat([empty, *(e["ids"] for e in examples)]), places, places, text),
        image=RegionBatch(
            torch.cat([none, *(e["features"] for e in examples)]),
            torch.zeros(image.tokens, 4),
            torch.zeros(image.tokens, dtype=torch.bool),
            image,
        ),
        joint=joint,
        joint_rows_J=joint_rows_J,
        split_rows_J=split_rows_J,
        targets={"words": words, "match": match},
        ids=tuple(map(str, numbers)),
    )


def step_of(number: int, micro_batches: list[Batch]) -> Step:
    return Step(number, micro_batches, examples=sum(map(len, micro_batches)))


def split_step(number: int, world: World, micro_batches: int, batch_size: int = 12) -> Step:
    """This rank's share of global batch `number`, dealt in turn to ranks and micro-batches (unequal in tokens)."""
    numbers = list(range(number * batch_size, (number + 1) * batch_size))[world.rank :: world.size]
    return step_of(number, [batch_of(numbers[index::micro_batches]) for index in range(micro_batches)])


OPTIMIZER = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, epsilon=EPSILON)


def _offloaded(stage: int) -> dict[str, Any]:
    return read_zero(zero_file(f"zero{stage}_offload"))


def engine_of(
    world: World,
    stage: int,
    *,
    precision: str = "fp32",
    seed: int = 0,
    clip: float | None = None,
    optimizer: OptimizerConfig = OPTIMIZER,
    ema: EmaConfig | None = None,
    offload: bool = False,
    **task: Any,
) -> Engine:
    """A fresh engine around the stand-in."""
    return Engine(
        StandIn(**task),
        weights=WEIGHTS,
        optimizer=optimizer.model_copy(update={"clip_norm": clip}),
        precision=precision,  # type: ignore[arg-type]
        zero=_offloaded(stage) if offload else {"zero_optimization": {"stage": stage}},
        world=world,
        seed=seed,
        ema=ema,
    )
