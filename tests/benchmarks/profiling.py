"""Where a step of training spends its time, by kind of work.

    python -m tests.benchmarks.profiling MODEL [--precision bf16] [--examples 16]

The third step of `tests.benchmarks.training`'s run of a model under torch's profiler: milliseconds of each operation
itself, added up by kind, and what the system took for the process in the second step (pages of fresh memory). A CPU
only: there, operations follow each other.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.pairs import assembled_run, steps_of
from tests.benchmarks.peers import peer_of
from tests.benchmarks.training import CASES, Ours, Setting, _overrides, _values
from vlp.assemble import make_module
from vlp.distributed import world
from vlp.models.flops import Arithmetic

KINDS = {
    "matrix products of linears": ("aten::mm", "aten::addmm", "aten::_addmm_activation", "aten::linear", "mkldnn::"),
    "attention": ("bmm", "addmm_", "softmax", "scaled_dot", "EachExample", "isneginf", "aten::all"),
    "random numbers for dropout": ("bernoulli", "random_", "aten::lt"),
    "GELU, LayerNorm": ("gelu", "layer_norm"),
    "AdamW, norm of the gradient": ("adamw", "vector_norm"),
    "copies, zeros, gathers": ("copy_", "aten::cat", "fill_", "zero_", "index", "aten::embedding"),
    "sums, products": ("aten::mul", "aten::add", "aten::div", "aten::sum"),
}
"""What an operation's name holds; the first that fits counts."""


def kind_of(name: str) -> str:
    fits = (kind for kind, parts in KINDS.items() if any(part == name or part in name for part in parts))
    exact = (kind for kind, parts in KINDS.items() if name in parts)
    return next(exact, None) or next(fits, "the rest, Python included")


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", choices=list(CASES))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--examples", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, world() as ranks:
        for name in given.models:
            setting = Setting("base", given.examples, 3, 0.1, "cpu", Path(folder))
            case = CASES[name]
            peer = peer_of(name) if case.model is None else None
            assembled = assembled_run(_values(case, peer, setting), _overrides(case, setting))
            del peer
            first, second, third = steps_of(assembled, 3)
            ours = Ours(make_module(assembled), assembled.task.weights, given.precision, ranks)
            ours.train(first)
            before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            ours.train(second)
            seconds, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
            with profile(activities=[ProfilerActivity.CPU]) as made:
                ours.train(third)
            ours.engine.close()
            arithmetic = Arithmetic(assembled.config.model)
            work = sum(3 * arithmetic.forward(batch) for batch in second.micro_batches) / 1e9
            print(f"{name}_base, {given.precision}, {torch.get_num_threads()} threads, {given.examples} examples")
            print(f"  step: {seconds:.2f} s, {work:.0f} GFLOP, {work / seconds:.0f} GFLOP/s", end="")
            print(f"; system {used.ru_stime - before.ru_stime:.2f} s of {_total(used) - _total(before):.2f} s on CPUs")
            milliseconds: dict[str, float] = defaultdict(float)
            for event in made.key_averages():
                milliseconds[kind_of(event.key)] += event.self_cpu_time_total / 1e3
            whole = sum(milliseconds.values())
            for kind, taken in sorted(milliseconds.items(), key=lambda item: -item[1]):
                print(f"  {kind:<30}{taken:>7.0f} ms {taken / whole:>6.1%}")


def _total(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
