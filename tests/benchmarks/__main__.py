"""The benchmarks in one run, or some by name, each in a process of its own.

    python -m tests.benchmarks [PART ...] [--device cpu|cuda]

Ends with one page: every figure, what it is held to, and what missed it. A part's own help
(`python -m tests.benchmarks.PART --help`) tells how to run more of it than the whole has time for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass

from tests.benchmarks.measuring import device_of, parser_of
from tests.benchmarks.results import read_results, show_results


@dataclass(frozen=True)
class Part:
    """A module of this folder."""

    arguments: tuple[str, ...] = ()
    """Of the whole run, which is sized for 15 minutes on two cores; a part's module by itself takes more time."""
    gpu: bool = False
    """Whether it has something to measure on a GPU."""
    whole: bool = True
    """Whether it is measured on a CPU where no part is named: all that compares the speed of models and loading."""


PARTS = {
    "training": Part(("--repeats", "2"), gpu=True),
    "extraction": Part(("visualbert_base", "lxmert_base", "--examples", "32", "--repeats", "2"), gpu=True),
    "retrieval": Part(("--images", "8", "--captions", "16", "--repeats", "1"), gpu=True),
    "memory_peers": Part(gpu=True, whole=False),
    "scaling": Part(gpu=True),
    "loader": Part(),
    "search": Part(("--count", "20000")),
    "decoding": Part(whole=False),
    "importing": Part(whole=False),
    "order": Part(whole=False),
    "shuffle": Part(whole=False),
    "memory": Part(whole=False),
    "scale": Part(whole=False),
}
"""In the order of the whole. `objectives`, `worker` and `daquar_folds` are not of its form: each is a command alone."""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    given = parser.parse_args()
    device = device_of(given.device)
    unknown = [name for name in given.parts if name not in PARTS]
    if unknown:
        raise SystemExit(f"PART: '{unknown[0]}' is not known, it should be one of {', '.join(PARTS)}")
    parts = given.parts or [name for name, part in PARTS.items() if (part.whole if device == "cpu" else part.gpu)]
    failed = [name for name in parts if not run(name, device)]
    show_results([row for row in read_results() if row["part"] in parts and row["device"] == device])
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(name: str, device: str) -> bool:
    """One part in its process; whether it ended well."""
    part, begun = PARTS[name], time.monotonic()
    asked = ("--device", device) if part.gpu else ()
    print(f"--- {name}", flush=True)
    command = [sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.{name}", *part.arguments, *asked]
    where = {"DS_ACCELERATOR": device} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    code = subprocess.run(command, check=False, env=os.environ | where).returncode
    print(f"--- {name}: {time.monotonic() - begun:.0f} s", flush=True)
    return code == 0


if __name__ == "__main__":
    main()
