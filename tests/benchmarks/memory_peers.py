"""Peak memory of training against the transformers library: two steps of a base model at equal tokens.

    make bench PART=memory_peers
    python -m tests.benchmarks.memory_peers visualbert lxmert --precision fp32 bf16

The same weights, batches and optimizer as in the benchmark of training; each program in a process of its own. The peak
is that of resident memory above what the process had after all imports (Linux), or of the GPU's allocations. vlp is
measured as it is, with the blocks recomputed in backward (`model.checkpointing`), without dropout of attention weights,
which torch's fused kernel for CPUs does not know (it then keeps the weights of every query and key), and by the plain
formula (`model.attention=reference`). The ratio says how many times the memory of vlp the library's class takes; in
fp32 weights, gradients and moments are 16 bytes a parameter in both.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tests.benchmarks.measuring import device_of, in_own_process, parser_of
from tests.benchmarks.results import Result, of_rounds, report

if TYPE_CHECKING:
    from vlp.train.zero import Precision

STEPS, EXAMPLES = 2, 32
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "vlp": ("as it is", ()),
    "checkpointing": ("recomputing blocks", ("model.checkpointing=true",)),
    "no_attention_dropout": ("without dropout of attention weights", ("model.attention_dropout=0",)),
    "reference_attention": ("by the plain formula of attention", ("model.attention=reference",)),
}
"""Of vlp: what they are, and overrides."""
_IMPORTED = ("tests.benchmarks.training", "torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer")
"""All that is imported sooner or later, so that the baseline holds it."""


def measure(name: str, precision: str, device: str, variants: Sequence[str]) -> list[Result]:
    """A model's peaks."""
    from tests.benchmarks.pairs import PER_IMAGE, photo_pairs, region_pairs
    from tests.benchmarks.peers import peer_of
    from tests.benchmarks.training import CASES

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        peer = peer_of(name)
        peer.converted(folder)
        called = f"transformers {type(peer.model).__name__}"
        del peer
        (photo_pairs if CASES[name].photos else region_pairs)(folder, -(-EXAMPLES * STEPS // PER_IMAGE))
        given = (name, precision, device, place)
        theirs = _one("theirs", *given)
        results = []
        for variant in variants:
            words, overrides = VARIANTS[variant]
            ours = _one("vlp", *given, *overrides)
            figures = {
                "vlp, MB": ours["peak"],
                "theirs, MB": theirs["peak"],
                "16 bytes a parameter, MB": 16 * ours["parameters"] / (1 << 20),
                "real tokens of a step": ours["tokens"],
                "padded": ours["padded"],
            }
            named = f"memory/{name}_base/{precision}/transformers_over_{variant}"
            against = f"{called} over vlp {words}"
            results.append(of_rounds(named, [theirs["peak"] / ours["peak"]], against=against, figures=figures))
            print(f"{named}: {theirs['peak']:.0f} MB over {ours['peak']:.0f} MB", flush=True)
    return results


def _one(who: str, *given: str) -> dict[str, float]:
    return in_own_process("tests.benchmarks.memory_peers", "--one", who, *given)


def one(who: str, name: str, precision: str, device: str, place: str, *overrides: str) -> dict[str, float]:
    """Train in this process; what that took, in MB."""
    for module in _IMPORTED:
        importlib.import_module(module)
    from tests.benchmarks.pairs import assembled_run, steps_of, tokenizer
    from tests.benchmarks.peers import peer_of
    from tests.benchmarks.training import CASES, Ours, Setting, Theirs
    from vlp.assemble import make_module
    from vlp.distributed import world
    from vlp.models.model import count_parameters

    folder, case = Path(place), CASES[name]
    values: dict[str, Any] = {
        "model": str(folder / "ours"),
        "tokenizer": str(tokenizer(folder)),
        "task": {"name": "pretrain", "objectives": case.objectives, "on_mismatched": True},
        "data": {"train": str(folder / ("photos" if case.photos else "regions"))},
        "batch": {"size": EXAMPLES, "micro_tokens": 1 << 30},
    }
    kind = cast("Precision", precision)
    with world() as ranks:
        assembled = assembled_run(values, [*case.changes, *overrides])
        steps = steps_of(assembled, STEPS)
        peak = Peak(device)
        if who == "vlp":
            module = make_module(assembled)
            parameters = count_parameters(module)
            ours = Ours(module, assembled.task.weights, kind, ranks)
            for step in steps:
                ours.train(step)
            found = peak.megabytes()
            ours.engine.close()
        else:
            setting = Setting("base", EXAMPLES, STEPS, 0.1, device, folder)
            theirs = Theirs(peer_of(name), kind, setting)
            parameters = count_parameters(theirs.peer.model)
            for step in steps:
                theirs.train(theirs.given(step.micro_batches[0]))
            found = peak.megabytes()
    (batch,) = steps[0].micro_batches
    return {"peak": found, "parameters": parameters, "tokens": batch.tokens, "padded": batch.padded_tokens}


class Peak:
    """The most memory from now on, above what there is now."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch if device == "cuda" else None
        if self._torch is not None:
            self._torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._before = _status("VmRSS")

    def megabytes(self) -> float:
        if self._torch is not None:
            return self._torch.cuda.max_memory_allocated() / (1 << 20)
        return _status("VmHWM") - self._before


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("models", nargs="*", default=["visualbert"], metavar="MODEL", help="visualbert, lxmert, vilt")
    parser.add_argument("--precision", nargs="*", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--variants", nargs="*", choices=tuple(VARIANTS), default=list(VARIANTS))
    given = parser.parse_args()
    device = device_of(given.device)
    results = [
        result
        for name in given.models
        for precision in given.precision
        for result in measure(name, precision, device, given.variants)
    ]
    report("memory_peers", __doc__, results, device=device)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*sys.argv[2:])))
    else:
        main()
