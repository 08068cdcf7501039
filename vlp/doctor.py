"""`vlp doctor`: is this machine fit for a run? What each check found and, where something is amiss, the remedy."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from vlp.errors import ConfigError, VlpError

State = Literal["good", "note", "bad"]
_GIB = 1 << 30
_NEEDED_DISK = 20 * _GIB
_NEEDED_SHARED = 2 * _GIB
_NEEDED_FILES = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    state: State
    found: str
    remedy: str = ""
    """What to do; empty where all is good."""


def examine(config: str | None, overrides: Sequence[str], build: bool) -> list[Finding]:
    """All checks, in the order in which a run would meet their subjects.

    Args:
        config: a run's config; its data, tokenizer and DeepSpeed file are checked too.
        build: start DeepSpeed with the config's settings now, so that what it compiles is compiled.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        _packages,
        _compiler,
        _torchvision,
        _gpu,
        _memory,
        _shared_memory,
        _open_files,
        lambda: _disk(config, overrides),
        _network,
    ]
    findings = [finding for check in checks for finding in _safely(check)]
    if config is not None:
        findings += _safely(lambda: _config(config, overrides, build))
    return findings


def _safely(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # a check that breaks is a finding too
        return [Finding(getattr(check, "__name__", "check").strip("_"), "bad", repr(error), "please report this")]


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "good", python)
    found, wrong = [], []
    for line in requires("vlp") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            has = version(needed.name)
        except PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
            continue
        found.append(f"{needed.name} {has}")
        if not needed.specifier.contains(has, prereleases=True):
            wrong.append(f"{needed.name} {has} is not {needed.specifier}")
    if wrong:
        yield Finding("packages", "bad", "; ".join(wrong), "install vlp again: pip install -e . -c constraints.txt")
    else:
        main = [
            name for name in found if name.split()[0] in ("torch", "torchvision", "timm", "transformers", "deepspeed")
        ]
        yield Finding("packages", "good", ", ".join(main))


def _compiler() -> Iterator[Finding]:
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    missing = [name for name, path in (("a C++ compiler", compiler), ("ninja", ninja)) if path is None]
    if missing:
        yield Finding(
            "compiler",
            "note",
            f"no {' and no '.join(missing)}",
            "needed only for what DeepSpeed compiles (offload to NVMe): apt install g++, pip install ninja",
        )
    else:
        yield Finding("compiler", "good", f"{compiler}, {ninja}")


def _torchvision() -> Iterator[Finding]:
    """A torchvision of another build than torch imports but has no compiled operations."""
    try:
        import torch
        import torchvision

        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
        assert torchvision.ops.nms(boxes, torch.tensor([1.0, 0.5]), 0.5).tolist() == [0]
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        yield Finding(
            "torch and torchvision",
            "bad",
            reason,
            "torch and torchvision are of different builds: reinstall both at once, pip install torch torchvision",
        )
        return
    yield Finding("torch and torchvision", "good", f"{torch.__version__}, {torchvision.__version__}, operations run")


def _gpu() -> Iterator[Finding]:
    import torch

    driver = shutil.which("nvidia-smi")
    if not torch.cuda.is_available():
        if driver and torch.version.cuda is not None:
            remedy = (
                f"the driver may be older than CUDA {torch.version.cuda}: update it, or install a torch built for it"
            )
            yield Finding("GPU", "bad", "nvidia-smi is there, but torch sees no GPU", remedy)
        elif driver:
            yield Finding(
                "GPU", "bad", "nvidia-smi is there, but torch was built without CUDA", "pip install torch anew"
            )
        else:
            yield Finding("GPU", "note", "none; runs use the CPU and gloo", "fine for trying things out")
        yield from _bf16_of_the_cpu()
        return
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    memory = torch.cuda.get_device_properties(0).total_memory / _GIB
    bf16 = "with bf16" if torch.cuda.is_bf16_supported() else "without bf16: use fp16 or fp32"
    yield Finding("GPU", "good", f"{len(names)} x {names[0]}, {memory:.0f} GiB, {bf16}")
    if torch.distributed.is_nccl_available():
        yield Finding("NCCL", "good", ".".join(map(str, torch.cuda.nccl.version())))  # type: ignore[no-untyped-call]
    else:
        yield Finding("NCCL", "bad", "this torch has none", "several GPUs need it: install a Linux build of torch")


def _bf16_of_the_cpu() -> Iterator[Finding]:
    import torch

    from vlp.models.kernels import product_type

    if product_type(torch.empty(0, dtype=torch.bfloat16)) == torch.bfloat16:
        yield Finding("bf16", "good", "multiplied on the CPU")
    else:
        remedy = "precision=fp32 is no slower, and exact; bf16 keeps smaller activations"
        yield Finding("bf16", "note", "not multiplied on this CPU, so products are made in fp32", remedy)


def _memory() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    yield Finding("CPU and memory", "good", f"{cores} cores, {pages:.0f} GiB")


def _shared_memory() -> Iterator[Finding]:
    """Loader workers hand their batches over in shared memory."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return
    free = shutil.disk_usage(place).free
    if free < _NEEDED_SHARED:
        remedy = "give the container more (docker run --shm-size=8g), or set data.workers=0"
        yield Finding("shared memory", "bad", f"{free / _GIB:.1f} GiB free in {place}", remedy)
    else:
        yield Finding("shared memory", "good", f"{free / _GIB:.1f} GiB free in {place}")


def _open_files() -> Iterator[Finding]:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _NEEDED_FILES:
        yield Finding("open files", "bad", f"at most {soft}", f"raise the limit: ulimit -n {4 * _NEEDED_FILES}")
    else:
        yield Finding("open files", "good", f"at most {soft}")


def _disk(config: str | None, overrides: Sequence[str]) -> Iterator[Finding]:
    place = Path.cwd()
    if config is not None:
        place = Path(_load(config, overrides).run.dir).absolute()
        while not place.exists():
            place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Finding("disk", "bad", f"{place} may not be written", "choose another run.dir")
    elif free < _NEEDED_DISK:
        remedy = "a base model's checkpoint takes 1.4 GB: free some space, or lower checkpoint.keep"
        yield Finding("disk", "note", f"{free / _GIB:.1f} GiB free in {place}", remedy)
    else:
        yield Finding("disk", "good", f"{free / _GIB:.0f} GiB free in {place}")


def _network() -> Iterator[Finding]:
    """Ranks of several nodes meet at MASTER_ADDR."""
    name = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        address = socket.gethostbyname(name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        yield Finding("network", "bad", f"{name}: {error}", "set MASTER_ADDR to a name that all nodes resolve")
        return
    yield Finding("network", "good", f"ranks meet at {name}" + (f" ({address})" if address != name else ""))


def _config(config: str, overrides: Sequence[str], build: bool) -> Iterator[Finding]:
    try:
        run = _load(config, overrides)
    except VlpError as error:
        yield Finding("config", "bad", str(error), "correct the config")
        return
    yield Finding("config", "good", f"{config}: {run.task.name}, {run.precision}")
    if build:
        yield from _first_start(run)
    try:
        from vlp.assemble import assemble

        assembled = assemble(run)
        yield Finding("data", "good", f"{assembled.order.examples:,} examples, {assembled.steps:,} steps")
    except VlpError as error:
        yield Finding("data", "bad", str(error), "see the sentence")
        return


def _first_start(run: Any) -> Iterator[Finding]:
    """Start DeepSpeed once with the run's settings on a model of one layer, so that what it compiles is compiled."""
    from vlp.train.firststart import start_once

    made = start_once(run.deepspeed, run.precision)
    said = f"compiled {', '.join(made)}" if made else "nothing had to be compiled"
    yield Finding("first start", "good", f"DeepSpeed trains with {run.deepspeed or 'its defaults'}; {said}")


def _load(config: str, overrides: Sequence[str]) -> Any:
    from vlp.run import load_run

    try:
        return load_run(config, overrides, "pretrain")
    except ConfigError:
        return load_run(config, overrides, "finetune")


def show(findings: Sequence[Finding]) -> None:
    """Print the findings as a table, those that are amiss with their remedy."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "", "found", show_lines=False)
    marks = {"good": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
    for finding in findings:
        remedy = f"\n-> {finding.remedy}" if finding.remedy else ""
        table.add_row(escape(finding.check), marks[finding.state], escape(finding.found + remedy))
    Console().print(table)
