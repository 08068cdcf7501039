"""Contrast, its momentum model and queue, and hard negatives are functions of the global batch, at every ZeRO stage."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.distributed.engines import engine_around
from tests.distributed.ranks import run_on_ranks
from tests.examples import SMALL, Words, sample, shipped
from vlp.distributed import World
from vlp.models.model import Network
from vlp.objectives.negatives import MOST
from vlp.seeds import draw, generator
from vlp.tasks.module import TaskModule
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.tasks.task import Setting
from vlp.train.checkpoint import CheckpointConfig, Checkpoints
from vlp.train.engine import Engine
from vlp.train.optimizer import OptimizerConfig, make_optimizer
from vlp.types import Batch, Example, Pair, Slot, Step

STAGES = (0, 1, 2, 3)
BATCH, RATE, SEED, DECAY, QUEUE = 6, 1e-3, 3, 0.8, 8
# As in test_global_batch: elements whose gradient is rounding alone stay still.
OPTIMIZER = OptimizerConfig(epsilon=1e-4, weight_decay=0.1)
MODEL = ("encoder.0.repeat=1", "encoder.2.repeat=1", "encoder.1.repeat=1")

ALPHA = 0.5
"""The momentum model's share of the targets of hidden words."""
MOMENTUM = {"decay": DECAY, "queue": QUEUE, "alpha": 0.4, "ramp": 3}
MLM = {"kind": "masked_language", "probability": 0.3}
ITC = {"kind": "contrast", "width": 5, "temperature": 0.2, "image": "mean"}
ITM = {"kind": "matching", "negatives": "hard", "weight": 0.5}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "alone": {"itc": ITC},
    "hard": {"itc": ITC, "itm": ITM},
    "hidden words": {"mlm": MLM, "itc": ITC, "itm": ITM},
    "momentum": {"mlm": {**MLM, "alpha": ALPHA}, "itc": {**ITC, "momentum": MOMENTUM}, "itm": ITM},
}


def task_of(objectives: str, family: str = "lxmert_tiny", combine: str = "all", *overrides: str) -> PretrainTask:
    config = PretrainConfig.parse({"combine": combine, "objectives": OBJECTIVES[objectives]})
    blocks = MODEL if family == "lxmert_tiny" else MODEL[:1]
    return PretrainTask(config, Setting(shipped(family, *SMALL, *blocks, *overrides), Words(), seed=SEED))  # type: ignore[arg-type]


def module_of(task: PretrainTask) -> TaskModule:
    torch.manual_seed(0)
    return TaskModule(Network(task.setting.model.model_copy(update={"heads": task.heads})), task.objectives)


def example_of(task: PretrainTask, step: int, index: int) -> Example:
    """An example of a global batch; the first two are of one image."""
    number = step * BATCH + index
    sizes = generator(0, "sizes", number).integers((3, 1), (10, 6))
    record = replace(sample(int(sizes[0]), int(sizes[1]), number), key=f"s{number + (index == 0)}")
    slot = Slot(step, index, dataset=0, epoch=0, block=0, group=0, example=number)
    return task.example(slot, Pair(number, number), record, record, 0, draw(0, "example", number), step)


def step_of(task: PretrainTask, number: int, parts: Sequence[Sequence[int]]) -> Step:
    """The micro-batches of one rank."""
    batches = [task.collate([[example_of(task, number, index)] for index in part], number) for part in parts]
    return Step(number, batches, examples=sum(map(len, parts)))


def engine_of(task: PretrainTask, stage: int, world: World) -> Engine:
    return engine_around(module_of(task), task.weights, stage, world, optimizer=OPTIMIZER, seed=SEED)


# ----------------------------------------------------------------------------------------------- a plain loop of torch


class Plain:
    """The same training by torch alone: one process, the whole batch at once, every pair through the whole model."""

    def __init__(self, task: PretrainTask) -> None:
        self.task = task
        self.module = module_of(task)
        self.slow = deepcopy(self.module)
        self.queue: list[tuple[Tensor, Tensor]] = []
        self.optimizer = make_optimizer(self.module, OPTIMIZER)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE

    def step(self, number: int) -> tuple[float, float]:
        """Loss and gradient norm of a step, which is then applied."""
        self.optimizer.zero_grad()
        loss, vectors = self.loss(number)
        loss.backward()
        for parameter in self.module.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))
        self.optimizer.step()
        with torch.no_grad():
            for slow, own in zip(self.slow.parameters(), self.module.parameters(), strict=True):
                slow.mul_(DECAY).add_(own, alpha=1 - DECAY)
        if vectors is not None:
            self.queue = (self.queue + vectors)[-QUEUE:]
        return float(loss.detach()), norm

    def loss(self, number: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]] | None]:
        examples = [example_of(self.task, number, index) for index in range(BATCH)]
        asked = self.task.ask(examples, number)
        active = self.task.active(number)
        total, vectors = torch.zeros(()), None
        if "mlm" in active:
            total = total + self.words(self.task.batch_of(examples, asked).to("cpu"), number)
        if "itc" in active:
            plain = [replace(e, token_ids_T=e.token_ids_T if e.plain_T is None else e.plain_T) for e in examples]
            contrast, scores_GG, vectors = self.contrast(plain, number)
            total = total + contrast
            if "itm" in active:
                total = total + 0.5 * self.matching(plain, scores_GG, number)
        return total, vectors

    def words(self, batch: Batch, number: int) -> Tensor:
        """Mean over the hidden words: cross entropy with the words, or in part with what the slow model guesses."""
        targets = batch.targets["mlm"]

        def scores_KV(module: TaskModule) -> Tensor:
            return module.model.heads["mlm"](module.model(batch).text_NH[targets.positions_K])  # type: ignore[no-any-return]

        alpha = self.task.config.objectives["mlm"].alpha * min(1, number / 3)  # type: ignore[union-attr]
        logs_KV = scores_KV(self.module).log_softmax(1)
        own_K = -logs_KV.gather(1, targets.values["token"][:, None])[:, 0]
        slow_K = -(scores_KV(self.slow).softmax(1).detach() * logs_KV).sum(1)
        return ((1 - alpha) * own_K + alpha * slow_K).mean()

    def batch(self, examples: list[Example]) -> Batch:
        return self.task.collate([[example] for example in examples], 0).to("cpu")

    def vectors(self, module: TaskModule, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors of texts and images, and one over the temperature."""
        batch = self.batch(examples)
        taps, head = module.model(batch).taps, module.model.heads["itc"]
        text = torch.stack([part[0] for part in taps["text.unimodal"].split(list(batch.text.packing.lengths))])
        image = torch.stack([part.mean(0) for part in taps["image.unimodal"].split(list(batch.image.packing.lengths))])
        return F.normalize(head.text(text)), F.normalize(head.image(image)), head.log_scale.exp()

    def contrast(self, examples: list[Example], number: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        text, image, scale = self.vectors(self.module, examples)
        slow = self.task.config.objectives["itc"].momentum is not None
        keys_text, keys_image, slow_scale = (
            tuple(x.detach() for x in self.vectors(self.slow, examples)) if slow else (text, image, scale)
        )
        own = list(zip(keys_text.detach(), keys_image.detach(), strict=True))
        scores_GG = (slow_scale * keys_text @ keys_image.T).detach()
        if slow and self.queue:
            keys_text = torch.cat([keys_text, torch.stack([t for t, _ in self.queue])])
            keys_image = torch.cat([keys_image, torch.stack([i for _, i in self.queue])])
        total = torch.zeros(())
        alpha = 0.4 * min(1, number / 3) if slow else 0.0
        for mine, keys, teacher in ((text, keys_image, keys_text), (image, keys_text, keys_image)):
            for row in range(BATCH):
                left = [key for key in range(len(keys)) if key == row or {key, row} != {0, 1}]
                odds = (scale * mine[row] @ keys[left].T).log_softmax(0)
                wanted = alpha * (scale * teacher[row] @ keys[left].T).softmax(0).detach()
                wanted[left.index(row)] += 1 - alpha
                total = total - (wanted * odds).sum() / 2
        return total / BATCH, scores_GG, own

    def matching(self, examples: list[Example], scores_GG: Tensor, number: int) -> Tensor:
        draws = generator(SEED, "hard negatives", number).random((BATCH, 2))
        pairs = [(row, row, 1) for row in range(BATCH)]
        room, left = [MOST] * BATCH, list(range(BATCH))
        while left:  # an image is given to so many texts; who comes too late draws again
            free = {row for row in range(BATCH) if room[row]}
            wishes = [(drawn(scores_GG[row], row, draws[row, 0], free), row) for row in left]
            left = []
            for image, row in wishes:
                if room[image]:
                    room[image] -= 1
                    pairs.append((image, row, 0))
                else:
                    left.append(row)
        everyone = set(range(BATCH))
        pairs += [(row, drawn(scores_GG[:, row], row, draws[row, 1], everyone), 0) for row in range(BATCH)]
        met = [replace(examples[image], token_ids_T=examples[text].token_ids_T) for image, text, _ in pairs]
        met = [replace(e, special_T=e.special_T, targets={}, plain_T=e.token_ids_T) for e in met]
        pooled = self.module.model(self.batch(met)).pooled_BH
        scores = self.module.model.heads["itm"](pooled)
        labels = torch.tensor([label for _, _, label in pairs])
        return F.cross_entropy(scores, labels, reduction="sum") / (3 * BATCH)


def drawn(scores: Tensor, row: int, draw: float, free: set[int]) -> int:
    """A pair of another image, of those that are free, by the softmax of the scores."""
    others = [other for other in sorted(free) if other != row and {other, row} != {0, 1}]
    reached = 0.0
    for other, share in zip(others, scores[others].double().softmax(0).tolist(), strict=True):
        reached += share
        if draw < reached:
            return other
    return others[-1]


# ------------------------------------------------------------------------------------------ a step, however it is split

SPLITS: dict[str, list[list[list[int]]]] = {
    "1 rank x 1": [[list(range(BATCH))]],
    "1 rank x 4": [[[5], [0, 3], [], [4, 2, 1]]],
    "2 ranks x 1": [[[0, 1]], [[2, 3, 4, 5]]],
    "2 ranks x 2": [[[1], [4, 5]], [[0, 3, 2], []]],
}
STEPS = 5


def walk(world: World, objectives: str, family: str, parts: list[list[list[int]]], stage: int) -> dict[str, Any]:
    task = task_of(objectives, family)
    engine = engine_of(task, stage, world)
    results = [engine.train_step(step_of(task, number, parts[world.rank]), RATE) for number in range(STEPS)]
    weights = engine.full_weights()
    engine.close()
    return {"losses": [(r.loss, r.grad_norm) for r in results], "weights": weights, "metrics": results[-1].metrics}


@cache
def plain_walk(objectives: str, family: str) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    plain = Plain(task_of(objectives, family))
    losses = [plain.step(number) for number in range(STEPS)]
    return losses, {name: tensor.detach() for name, tensor in plain.module.state_dict().items()}


# All stages with the most ranks and micro-batches; the other splits where all parts of the first pass are at work.
CASES = [(objectives, "2 ranks x 2", stage) for objectives in OBJECTIVES for stage in STAGES]
CASES += [(o, split, stage) for o in ("hidden words", "momentum") for split in tuple(SPLITS)[:3] for stage in (0, 3)]


@pytest.mark.parametrize(("objectives", "split", "stage"), CASES)
def test_steps_are_functions_of_the_global_batch(objectives: str, split: str, stage: int) -> None:
    _compare(objectives, "lxmert_tiny", SPLITS[split], stage)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_single_stream_meets_its_hard_negatives_too(stage: int) -> None:
    _compare("momentum", "uniter_tiny", SPLITS["2 ranks x 2"], stage)


def _compare(objectives: str, family: str, parts: list[list[list[int]]], stage: int) -> None:
    losses, weights = plain_walk(objectives, family)
    found = run_on_ranks(len(parts), walk, objectives=objectives, family=family, parts=parts, stage=stage)[0]
    for its, wanted in zip(found["losses"], losses, strict=True):
        assert wanted[1] > 0.1
        assert its[0] == pytest.approx(wanted[0], abs=1e-5)
        assert its[1] == pytest.approx(wanted[1], rel=1e-5)
    assert 0 <= found["metrics"]["itc_accuracy"] <= 1
    for name, weight in weights.items():
        torch.testing.assert_close(found["weights"][name], weight, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# -------------------------------------------------------------------------------------- many steps, one objective each

LONG = 50
OBJECTIVES["one"] = {"mlm": {**MLM, "ratio": 1}, "itc": {**ITC, "momentum": MOMENTUM, "ratio": 1}}


def long_walk(world: World, stage: int) -> dict[str, Tensor]:
    task = task_of("one", "lxmert_tiny", "one")
    engine = engine_of(task, stage, world)
    own = list(range(BATCH))[world.rank :: world.size]
    for number in range(LONG):
        engine.train_step(step_of(task, number, [own[:1], own[1:]]), RATE)
    weights = engine.full_weights()
    engine.close()
    return weights


@cache
def plain_long_walk() -> dict[str, Tensor]:
    plain = Plain(task_of("one", "lxmert_tiny", "one"))
    for number in range(LONG):
        plain.step(number)
    return {name: tensor.detach() for name, tensor in plain.module.state_dict().items()}


@pytest.mark.parametrize("stage", STAGES)
def test_one_objective_per_step_walks_as_a_plain_loop(stage: int) -> None:
    drawn = [task_of("one", "lxmert_tiny", "one").active(number) for number in range(LONG)]
    assert set(drawn) == {("mlm",), ("itc",)}
    found = run_on_ranks(2, long_walk, stage=stage)[0]
    for name, weight in plain_long_walk().items():
        torch.testing.assert_close(found[name], weight, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# ------------------------------------------------------------------------------------------------- stop and go on


def resumed(world: World, stage: int, directory: Path, stops: list[int]) -> dict[str, Tensor]:
    """All that a run ends with: weights, momentum weights and queue; it stops and goes on at `stops`."""
    task = task_of("momentum")
    for first, last in zip([0, *stops], [*stops, STEPS], strict=True):
        engine = engine_of(task, stage, world)
        checkpoints = Checkpoints(directory, CheckpointConfig(), world, {})
        checkpoints.load_newest(engine)
        for number in range(first, last):
            engine.train_step(step_of(task, number, SPLITS["2 ranks x 2"][world.rank]), RATE)
        checkpoints.save(engine, last)
        pieces = {f"{kind}/{p.name}": v.clone() for p in engine.pieces() for kind, v in p.values.items()}
        found = pieces | {f"queue/{name}": tensor.clone() for name, tensor in engine.queue().items()}
        engine.close()
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_goes_on_to_the_bit(stage: int, tmp_path: Path) -> None:
    whole = run_on_ranks(2, resumed, stage=stage, directory=tmp_path / "whole", stops=[])
    parts = run_on_ranks(2, resumed, stage=stage, directory=tmp_path / "parts", stops=[2, 4])
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        assert {name.partition("/")[0] for name in one} >= {"weight", "momentum", "queue"}
        assert int(one["queue/seen"]) == STEPS * BATCH > QUEUE
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name


def kept(world: World, stage: int, directory: Path, first: int, last: int) -> dict[str, Tensor]:
    task = task_of("momentum")
    engine = engine_of(task, stage, world)
    checkpoints = Checkpoints(directory, CheckpointConfig(), world, {})
    checkpoints.load_newest(engine)
    own = list(range(BATCH))[world.rank :: world.size]
    for number in range(first, last):
        engine.train_step(step_of(task, number, [own]), RATE)
    checkpoints.save(engine, last)
    weights = engine.full_weights() | engine.queue()
    engine.close()
    return weights


def test_a_checkpoint_goes_on_at_another_stage_and_number_of_ranks(tmp_path: Path) -> None:
    whole = run_on_ranks(2, kept, stage=2, directory=tmp_path / "whole", first=0, last=STEPS)[0]
    run_on_ranks(2, kept, stage=3, directory=tmp_path / "parts", first=0, last=3)
    parts = run_on_ranks(1, kept, stage=0, directory=tmp_path / "parts", first=3, last=STEPS)[0]
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------- dropout and temperature


def dropped(world: World, stage: int) -> tuple[float, float]:
    """Loss of a step that the first pass tells, and the one that the second pass's own vectors give."""
    task = task_of("alone", "lxmert_tiny", "all", "dropout=0.3", "attention_dropout=0.3")
    engine = engine_of(task, stage, world)
    own = list(range(BATCH))[world.rank :: world.size]
    seen: list[Tensor] = []
    contrast = task.objectives["itc"]
    scores = contrast.scores
    contrast.scores = lambda *given: seen.append(scores(*given)) or seen[-1]  # type: ignore[method-assign, func-returns-value]
    engine.train_step(step_of(task, 0, [own[:1], own[1:]]), 0.0)
    engine.close()
    assert len(seen) == 4
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    assert second.requires_grad != first.requires_grad
    return float((first - second).abs().max()), float(first.std())


@pytest.mark.parametrize("stage", [0, 3])
def test_both_passes_draw_the_same_dropout(stage: int) -> None:
    for apart, spread in run_on_ranks(2, dropped, stage=stage):
        assert apart < 1e-6 < spread


def cooled(world: World, stage: int) -> float:
    """The temperature after steps that would take it below its bound."""
    task = task_of("alone")
    module = module_of(task)
    module.model.heads["itc"].log_scale.data.fill_(6.9)
    engine = engine_around(module, task.weights, stage, world, optimizer=OptimizerConfig(), seed=SEED)
    for _ in range(3):
        for piece in engine.states.pieces():
            if piece.name.endswith("log_scale"):
                piece.values["exp_avg"].fill_(-1e3)  # whatever the step's own gradient says
        result = engine.train_step(step_of(task, 0, [list(range(BATCH))[world.rank :: world.size]]), 1.0)
    scale = float(engine.full_weights().get("model.heads.itc.log_scale", torch.zeros(1)).exp())
    engine.close()
    assert result.metrics["itc_temperature"] == pytest.approx(0.001, rel=1e-4)
    return scale


@pytest.mark.parametrize("stage", STAGES)
def test_the_temperature_stays_within_its_bounds(stage: int) -> None:
    assert run_on_ranks(2, cooled, stage=stage)[0] == pytest.approx(1000, rel=1e-4)
