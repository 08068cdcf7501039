"""What a plan is made of: what autograd keeps, memory by stage, work, and the tables of the command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from vlp.cli import app
from vlp.errors import ConfigError
from vlp.objectives.objective import Objective
from vlp.plan.activations import Kept, kept_of, meta_task
from vlp.plan.cluster import Cluster, network_of, work_of
from vlp.plan.config import planned_run
from vlp.plan.ground import Ground, ground_of
from vlp.plan.memory import STAGES, Setup, Trained, memory_of
from vlp.plan.plan import make_plan, means_of
from vlp.train.zero import CPU_BUCKET, Precision
from vlp.types import Batch

LEAST = ("model.text.layer.width=32", "model.text.layer.heads=2", "model.text.layer.ffn=48", "model.text.vocab_size=90")
CLUSTER = Cluster(gpus=2, nodes=1, memory=80, peak=100, mfu=0.5)
KEPT = Kept(10 << 20, 1000 << 20, 12 << 20)
BASE = Trained(110_000_000, 0, 22_000_000)


def ground(config: str = "uniter_tiny", *overrides: str) -> Ground:
    return ground_of(planned_run(config, [*LEAST, "precision=fp32", *overrides]), text_tokens=9, regions=5)


def really_kept(given: Ground, batch: Batch) -> int:
    """Bytes that autograd saves on the CPU, each storage once, without weights and inputs."""
    from vlp.models.model import Network
    from vlp.tasks.module import TaskModule

    module = TaskModule(Network(given.config.model), given.task.objectives).train()
    if given.config.precision == "bf16":
        module = module.bfloat16()
    batch = batch.to("cpu", torch.bfloat16 if given.config.precision == "bf16" else None)
    known = {parameter.data_ptr() for parameter in module.parameters()} | {t.data_ptr() for t in tensors_of(batch)}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and storage.nbytes():
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = module(batch)
    assert losses.sums
    return sum(storage.nbytes() for storage in kept.values())


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    from vlp.plan.activations import _tensors

    return _tensors(batch)


@pytest.mark.parametrize("config", ["uniter_tiny", "lxmert_tiny", "vilt_tiny"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_what_autograd_keeps(config: str, precision: str) -> None:
    given = ground(config, f"precision={precision}")
    batch = given.micro_batch(given.views[0], 300)
    found = kept_of(meta_task(given.config, given.task), batch, "cpu")
    assert found.saved == pytest.approx(really_kept(given, batch), rel=0.01)


def test_pairs_of_hard_negatives_are_planned_for() -> None:
    hard = {"itc": "{kind: contrast, momentum: {}}", "itm": "{kind: matching, negatives: hard}"}
    objectives = ", ".join(f"{name}: {own}" for name, own in hard.items())
    given = ground("albef_tiny", "precision=fp32", f"task.objectives={{{objectives}}}")
    batch = given.micro_batch(given.task, 600)
    assert batch.rematched is not None
    assert len(batch.rematched.pairs) == 3 * len(batch)
    assert given.counted(given.task, batch) <= 600 < given.counted(given.task, batch) * (1 + 1 / len(batch))
    found = kept_of(meta_task(given.config, given.task), batch, "cpu")
    assert found.saved == pytest.approx(really_kept(given, batch), rel=0.01)
    alone = replace(batch, rematched=None, targets={n: replace(t, survey={}) for n, t in batch.targets.items()})
    assert kept_of(meta_task(given.config, given.task), alone, "cpu").saved < 0.8 * found.saved
    assert [means_of(each.config) for each in (given, ground(), ground("uniter_tiny", "ema={}"))] == [1, 0, 1]


def test_a_gpu_keeps_no_attention_weights_and_smaller_masks() -> None:
    given = ground()
    batch = given.micro_batch(given.views[0], 300)
    module = meta_task(given.config, given.task)
    assert kept_of(module, batch, "cuda").saved < kept_of(module, batch, "cpu").saved


def test_objectives_that_begin_later_are_planned_for() -> None:
    given = ground("lxmert_tiny", "task.objectives.mrfr.from_step=100")
    (view,) = given.views
    assert given.micro_batch(view, 300).targets["mrfr"].count > 0


def test_checkpointing_keeps_less() -> None:
    found = []
    for checkpointing in ("false", "true"):
        given = ground("uniter_tiny", f"model.checkpointing={checkpointing}", "model.encoder.0.repeat=12")
        batch = given.micro_batch(given.views[0], 300)
        found.append(kept_of(meta_task(given.config, given.task), batch, "cuda").saved)
    assert found[1] < found[0] / 3


def of(stage: int, ranks: int, **more: Any) -> int:
    return memory_of(BASE, KEPT, Setup(ranks=ranks, stage=stage, precision="bf16", **more)).peak


@pytest.mark.parametrize(
    ("precision", "ranks", "measured"),
    [
        ("bf16", 1, [2147, 3001, 2688, 3025]),
        ("bf16", 2, [2370, 2358, 1830, 1934]),
        ("fp32", 1, [2210, 2669, 2673, 3539]),
        ("fp32", 2, [2285, 2025, 2025, 2558]),
    ],
)
def test_memory_is_what_ranks_were_seen_to_take(precision: Precision, ranks: int, measured: list[int]) -> None:
    """UNITER-base at 512 tokens, MB of ranks on a CPU (docs/scale.md).

    From stage 1 on with DeepSpeed's own bucket; at stage 0 what is freed stays with the process.
    """
    model = Trained(112_938_887, 0, 28996 * 768)
    kept = Kept(10 << 20, (270 if precision == "bf16" else 380) << 20, 12 << 20)
    for stage, seen in enumerate(measured):
        bucket = 500_000_000 if stage > 0 else CPU_BUCKET
        setup = Setup(ranks=ranks, stage=stage, precision=precision, bucket=bucket)
        assert memory_of(model, kept, setup, returned=stage > 0).peak / 2**20 == pytest.approx(seen, rel=0.06)


def test_memory_falls_with_stage_and_ranks() -> None:
    for ranks in (8, 64):
        states = [memory_of(BASE, KEPT, Setup(ranks=ranks, stage=stage, precision="bf16")) for stage in STAGES]
        assert [memory.states for memory in states] == [12 * BASE.parameters, *[12 * BASE.parameters // ranks] * 3]
        assert [memory.weights for memory in states] == [*[2 * BASE.parameters] * 3, 2 * BASE.parameters // ranks]
    assert of(2, 64) < of(2, 8) < of(2, 2) < of(1, 2)
    assert of(2, 8, offload_optimizer=True) < of(2, 8)
    assert of(2, 8) < of(2, 8, several=True)
    assert of(2, 8) < of(2, 8, means=1) < of(2, 8, means=2)


def test_micro_batches_are_alike_and_within_the_budget() -> None:
    given = ground()
    batch = given.micro_batch(given.task, 300)
    assert 300 - given.example_tokens < batch.tokens <= 300
    assert set(batch.text.packing.lengths) == {9}
    assert set(batch.image.packing.lengths) == {5}
    assert len(given.micro_batch(given.task, 300, slots=2)) == 2
    assert len(given.micro_batch(given.task, 1)) == 1


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("vqa", ["model=uniter_tiny", "tokenizer=words"]),
        ("retrieval", ["model=uniter_tiny", "tokenizer=words"]),
        ("classify", ["model=uniter_tiny", "tokenizer=words"]),
        ("uniter_base", ["model=uniter_tiny"]),
        ("lxmert_base", []),
        ("albef_tiny", []),
        ("flickr8k_dual", ["tokenizer=words"]),
        ("lxmert_tiny_pixels", []),
        ("vl_bert_tiny", []),
    ],
)
def test_every_kind_of_run_can_be_planned(config: str, overrides: list[str]) -> None:
    given = ground_of(planned_run(config, [*overrides, "batch.size=16"]), text_tokens=9, regions=5)
    plan = make_plan(given, CLUSTER)
    assert plan.chosen.memory.peak > 0
    assert plan.work.operations > 0
    assert all(isinstance(objective, Objective) for objective in given.task.objectives.values())


def test_work_is_three_forwards_of_every_token() -> None:
    given = ground()
    work = work_of(given)
    assert work.tokens == given.config.batch.size * given.example_tokens
    dense = sum(p.numel() for p in meta_task(given.config, given.task).model.encoder.parameters())
    assert 6 * dense * work.tokens < work.operations < 20 * dense * work.tokens
    again = work_of(ground("uniter_tiny", "model.checkpointing=true"))
    assert again.operations == work.operations
    assert again.spent == pytest.approx(work.spent * 4 / 3)


def test_traffic_of_the_stages() -> None:
    at = {row.stage: row.bytes for row in network_of(1000, "bf16", 2, CLUSTER, 1.0)}
    assert at == {0: 4000, 1: 5000, 2: 5000, 3: 6000}  # half of each tensor on two ranks
    assert {row.bytes for row in network_of(1000, "bf16", 2, Cluster(1, 1, 80, 1, 1), 1.0)} == {0}


def test_what_fits_grows_with_the_gpu() -> None:
    given = ground("uniter_tiny", "batch.size=64")
    small, large = (make_plan(given, Cluster(2, 1, memory, 100, 0.5)) for memory in (8, 16))
    assert 0 < small.chosen.fits < large.chosen.fits
    nothing = make_plan(given, Cluster(2, 1, 1.0, 100, 0.5))
    assert nothing.chosen.fits == 0


def test_fewer_examples_than_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch.size is 64, fewer .* the 128 ranks"):
        make_plan(ground(), Cluster(128, 16, 80, 100, 0.5))


def test_the_command_shows_memory_time_and_network() -> None:
    from typer.testing import CliRunner

    shown = CliRunner().invoke(app, ["plan", "uniter_tiny", "--gpus", "16", "--gpu-memory", "40", "--peak", "200"])
    assert shown.exit_code == 0, shown.output
    for part in ("16 GPUs of 40 GiB on 2 nodes", "zero2 *", "zero3_offload", "hours", "data.groups=2"):
        assert part in shown.output
    assert "GB/s at which that hides" in shown.output
