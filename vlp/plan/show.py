"""A plan as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vlp.plan.cluster import MFU, PEAK_TFLOPS, Cluster
from vlp.plan.config import planned_run
from vlp.plan.ground import ground_of
from vlp.plan.plan import GIB, Plan, make_plan

_NARROWEST = 100


def plan_run(
    config: str,
    overrides: Sequence[str],
    *,
    gpus: int,
    gpu_memory: float,
    nodes: int | None,
    peak: float | None,
    mfu: float | None,
    text_tokens: int | None,
    regions: int | None,
    cpu: bool,
) -> None:
    """Print the plan of a run's config; see `vlp plan --help` for the arguments."""
    ground = ground_of(planned_run(config, overrides), text_tokens=text_tokens, regions=regions)
    cluster = Cluster(gpus, nodes or -(-gpus // 8), gpu_memory, peak or PEAK_TFLOPS, mfu or MFU)
    show(make_plan(ground, cluster, "cpu" if cpu else "cuda"), given_peak=peak is not None)


def show(plan: Plan, *, given_peak: bool = True) -> None:
    """Print a plan."""
    console = Console(width=max(_NARROWEST, Console().width))
    for note in plan.ground.assumed:
        console.print(note, highlight=False)
    for line in _headline(plan):
        console.print(line, highlight=False)
    console.print(_memory(plan))
    console.print("* what the config says", highlight=False)
    console.print(_work(plan, given_peak))
    console.print(_network(plan))


def _headline(plan: Plan) -> list[str]:
    config, cluster, trained = plan.ground.config, plan.cluster, plan.trained
    frozen = f", {trained.frozen:,} of them frozen" if trained.frozen else ""
    fits = plan.chosen.memory.peak <= cluster.memory * GIB
    held = "fits" if fits else "does not fit"
    batches = f"{plan.micro_batches} micro-batch" + ("es" if plan.micro_batches > 1 else "")
    return [
        f"{plan.total:,} parameters{frozen}; {config.precision}, deepspeed {config.deepspeed or 'null'}; "
        f"{cluster.gpus} GPUs of {cluster.memory:g} GiB on {cluster.nodes} nodes",
        f"a step of {config.batch.size:,} examples: {batches} of up to "
        f"{config.batch.micro_tokens:,} tokens per rank (the largest has {plan.micro_tokens:,})",
        f"{plan.chosen.name} needs {_gib(plan.chosen.memory.peak)} GiB per rank, which {held}",
    ]


def _memory(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("GiB per rank", no_wrap=True)
    parts = ("weights", "states", "gradients", "activations", "buffers")
    for name in (*parts, "in all", "host", "tokens that fit"):
        table.add_column(name, justify="right", no_wrap=True)
    for way in plan.ways:
        sizes = (*(getattr(way.memory, part) for part in parts), way.memory.peak)
        host = _gib(way.memory.host) if way.memory.host else "-"
        name = f"{way.name} *" if way.chosen else way.name
        table.add_row(name, *map(_gib, sizes), host, f"{way.fits:,}" if way.fits else "none")
    return table


def _work(plan: Plan, given_peak: bool) -> Table:
    work, cluster, reading = plan.work, plan.cluster, plan.reading
    table = Table("the run", "", box=SIMPLE_HEAD, pad_edge=False)
    table.add_row("tokens of a step", f"{work.tokens:,} ({plan.ground.example_tokens} per example)")
    table.add_row("operations of a step", f"{work.operations:.3g}")
    speed = f"{cluster.peak:g} TFLOPS{'' if given_peak else ' (an A100)'} at {cluster.mfu:.0%}"
    table.add_row("seconds of a step", f"{plan.seconds:.3g} on {cluster.gpus} GPUs of {speed}")
    if work.steps is None:
        table.add_row("steps", "unknown without the data: set run.steps")
    else:
        hours = work.steps * plan.seconds / 3600
        table.add_row("steps", f"{work.steps:,}: {work.steps * work.examples:,} examples")
        table.add_row("tokens", f"{work.steps * work.tokens:.3g}")
        table.add_row("operations", f"{work.steps * work.operations:.3g}")
        table.add_row("hours", f"{hours:,.3g}, {hours * cluster.gpus:,.4g} of one GPU")
    table.add_row("data", f"data.groups={reading.groups}, {reading.shards:,} shards or more")
    table.add_row("loader", f"data.workers={reading.workers} per rank for {reading.rate:,.0f} examples/s")
    table.add_row("memory to start", f"{_gib(plan.start)} GiB of each node's own, since a rank makes the whole model")
    return table


def _network(plan: Plan) -> Table:
    columns = ("network", "GB that a rank sends per step", "GB/s at which that hides")
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for row in plan.network:
        table.add_row(f"zero{row.stage}", f"{row.bytes / 1e9:.3g}", f"{row.bandwidth / 1e9:.3g}")
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}"
