"""Importing DeepSpeed without its noise, and without the compilation of what is not used."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any


def import_deepspeed(log_file: Path | None = None) -> Any:
    """The deepspeed package, with its warnings going to a file instead of the terminal.

    At a first start on CPU DeepSpeed would compile a shared-memory reduction (about a minute, needs g++ and ninja)
    that only its inference engine calls. It is switched off here, so training compiles nothing; should DeepSpeed want
    to all the same, that is announced. What it compiles is kept for later starts (TORCH_EXTENSIONS_DIR).

    Args:
        log_file: where warnings and errors go; none drops warnings and leaves errors to exceptions.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    from deepspeed.runtime import bf16_optimizer

    # It prints the memory of the machine six times, and on a GPU forgets the peak that `memory_gib` is to tell.
    bf16_optimizer.see_memory_usage = lambda *_, **__: None
    _announce_compiling()
    logger = logging.getLogger("DeepSpeed")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(_handler(log_file))
    logger.setLevel(logging.WARNING)
    return deepspeed


def compiled() -> set[str]:
    """Names of the operations that have been compiled on this machine."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    return {path.parent.name for path in root.glob("**/*.so")}


def _announce_compiling() -> None:
    """Have a line printed before an operation is compiled, which takes a minute or more without a word."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    load = OpBuilder.jit_load
    if getattr(load, "announces", False):
        return

    def announced(self: Any, verbose: bool = True) -> Any:
        if self.name not in compiled():
            print(f"compiling DeepSpeed's {self.name} for this machine: a minute or more, once", flush=True)
        return load(self, verbose)

    announced.announces = True  # type: ignore[attr-defined]
    OpBuilder.jit_load = announced


def _handler(log_file: Path | None) -> logging.Handler:
    if log_file is None:
        return logging.NullHandler()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log_file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler
