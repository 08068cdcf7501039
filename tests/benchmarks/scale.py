"""The tables of docs/scale.md: plans of base models, and of 1 and 10 billion parameters, on 8, 64 and 1024 GPUs.

    python -m tests.benchmarks.scale

Prints Markdown. Nothing is trained: everything is worked out by `vlp plan`'s code.
"""

from __future__ import annotations

from vlp.plan.cluster import Cluster
from vlp.plan.config import planned_run
from vlp.plan.ground import ground_of
from vlp.plan.plan import GIB, Plan, make_plan

BASES = ("visualbert_base", "uniter_base", "unicoder_vl_base", "vl_bert_base", "vilbert_base", "lxmert_base")
LARGE = {
    "uniter_base, 1 B": (1792, 14, 24),
    "uniter_base, 10 B": (4096, 32, 48),
}
"""Width, heads, blocks; recomputed (`model.checkpointing=true`)."""
GPUS = (8, 64, 1024)
MEMORY, PEAK = 80.0, 989.0
"""Of an H100 in bf16 without sparsity."""
RECIPE = (
    "batch.size=4096",
    "batch.micro_tokens=16384",
    "precision=bf16",
    "deepspeed=zero2",
    "run.steps=100000",
    "run.epochs=null",
)
"""The same for all, so that models and not recipes are compared."""


def overrides_of(name: str) -> tuple[str, list[str]]:
    """The config of a row and what is changed in it."""
    if name not in LARGE:
        return name, []
    width, heads, blocks = LARGE[name]
    layer = {"width": width, "heads": heads, "ffn": 4 * width}
    given = [f"model.text.layer.{key}={value}" for key, value in layer.items()]
    return name.split(",")[0], [*given, f"model.encoder.0.repeat={blocks}", "model.checkpointing=true"]


def plans() -> list[tuple[str, Plan]]:
    found = []
    for name in (*BASES, *LARGE):
        config, overrides = overrides_of(name)
        ground = ground_of(planned_run(config, [*RECIPE, *overrides]), text_tokens=20, regions=36)
        found += [(name, make_plan(ground, Cluster(gpus, gpus // 8, MEMORY, PEAK, 0.4))) for gpus in GPUS]
    return found


def main() -> None:
    made = plans()
    stages = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
    _head("model", "parameters", "GPUs", *stages, "tokens, zero2", "tokens, zero3")
    for name, plan in made:
        ways = {way.name: way for way in plan.ways}
        sizes = [f"{ways[way].memory.peak / GIB:,.1f}" for way in stages]
        fits = [f"{ways[way].fits:,}" if ways[way].fits else "none" for way in ("zero2", "zero3")]
        _row(name, f"{plan.total / 1e6:,.0f} M", str(plan.cluster.gpus), *sizes, *fits)
    print()
    _head("model", "GPUs", "ms per step", "hours", "GB, zero2", "GB/s", "GB, zero3", "GB/s", "shards", "workers")
    for name, plan in made:
        sent = [plan.network[stage] for stage in (2, 3)]
        traffic = [cell for one in sent for cell in (f"{one.bytes / 1e9:.2f}", f"{one.bandwidth / 1e9:.1f}")]
        hours = f"{(plan.work.steps or 0) * plan.seconds / 3600:,.1f}"
        reading = (f"{plan.reading.shards:,}", str(plan.reading.workers))
        _row(name, str(plan.cluster.gpus), f"{1000 * plan.seconds:,.1f}", hours, *traffic, *reading)


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |")


def _head(*columns: str) -> None:
    _row(*columns)
    print("|---" * len(columns) + "|")


if __name__ == "__main__":
    main()
