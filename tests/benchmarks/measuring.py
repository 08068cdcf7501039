"""How the benchmarks measure: programs in turn, repeated; memory in processes of their own; on what machine."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_INSTRUCTIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 with bf16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
PACKAGES = ("torch", "torchvision", "timm", "transformers", "deepspeed", "webdataset", "faiss-cpu", "numpy", "pillow")


def device_of(asked: str) -> str:
    """`cuda` or `cpu`: what is asked for, or with `auto` the best that is there."""
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise SystemExit("--device cuda: torch finds no GPU on this machine; leave it out to measure on the CPU")
    return ("cuda" if there else "cpu") if asked == "auto" else asked


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark of a model has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def wait_for(device: str) -> None:
    """Until a GPU has done what it was given; a CPU has."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int, *, device: str = "cpu", warm: int = 0
) -> dict[str, list[float]]:
    """Seconds of each call, each as often, in turn, so that what else the machine does meets all of them alike.

    Args:
        warm: rounds before, which are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm + repeats):
        for name, call in calls.items():
            wait_for(device)
            begun = time.perf_counter()
            call()
            wait_for(device)
            if turn >= warm:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def rate(count: float, seconds: Sequence[float]) -> dict[str, float]:
    """Things per second: the median run, and the slowest and fastest."""
    return {
        "median": count / statistics.median(seconds),
        "lowest": count / max(seconds),
        "highest": count / min(seconds),
    }


def spread(values: Mapping[str, float]) -> str:
    """A rate as a cell of a table."""
    return f"{values['median']:,.0f} ({values['lowest']:,.0f} to {values['highest']:,.0f})"


def in_own_process(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a module prints as its last line, in JSON: for measures of memory, which no earlier run may have touched."""
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    given = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def in_ranks(module: str, *arguments: str, ranks: int, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """As `in_own_process`, by the ranks of one process group, a thread each; what each of them prints."""
    from vlp.launch import _free_port

    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    given = {**os.environ, **place, "OMP_NUM_THREADS": "1", **environment}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, *arguments],
            env={**given, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, said, strict=True):
        if process.returncode:
            raise SystemExit(errors)
    return [json.loads(output.splitlines()[-1]) for output, _ in said]


class Apart:
    """A thing that lives in a process of its own, with a heap and settings of its own; its methods are called here.

    Args:
        make: makes it there, of the arguments.
    """

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, method: str, *arguments: object) -> Any:
        """What a method returns; the time that it takes is that of the method and some microseconds."""
        try:
            self._pipe.send((method, arguments))
            return self._pipe.recv()
        except (BrokenPipeError, EOFError):
            raise SystemExit(f"{method}: the other process ended, see above") from None

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    thing = make(*arguments)
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(thing, method)(*given))


def megabytes(process: str = "self") -> float:
    """Memory that a process has, in MB, what it shares counted by its part (Linux)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def peak_megabytes() -> float:
    """The most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Machine:
    """What figures were taken on, from the start of this process to now."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._begun, self._used, self._own = time.monotonic(), _used_seconds(), _own_seconds()

    def facts(self) -> dict[str, Any]:
        """The machine, its load before, the shares of its cores that other programs and its host took, versions."""
        seconds = max(1e-9, (time.monotonic() - self._begun) * (os.cpu_count() or 1))
        busy, host = (now - before for now, before in zip(_used_seconds(), self._used, strict=True))
        others = max(0.0, busy - (_own_seconds() - self._own)) / seconds
        return {
            "date": date.today().isoformat(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
            "memory GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
            "gpu": _gpu(),
            "load before": round(self._load, 2),
            "taken by others": round(others, 3),
            "taken by the host": round(host / seconds, 3),
            "python": platform.python_version(),
            "versions": {name: found for name in PACKAGES if (found := _version(name))},
        }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _used_seconds() -> tuple[float, float]:
    """Of all cores since the machine started: for all programs, and taken by the host of a virtual machine (Linux; 0
    elsewhere)."""
    try:
        user, nice, system, _, _, _, _, host = map(int, Path("/proc/stat").read_text(encoding="ascii").split()[1:9])
    except OSError:
        return 0.0, 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system) / ticks, host / ticks


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _processor() -> str:
    """Its name, and the best of its instructions that products are made of: the name alone tells no generation."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        name, has = said["model name"], set(said["flags"].split())
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
    return next((f"{name} ({words})" for flag, words in _INSTRUCTIONS.items() if flag in has), name)


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


MACHINE = Machine()
