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
    that only its inference engine calls. It is switched off here, so training compiles nothing.

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
    logger = logging.getLogger("DeepSpeed")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(_handler(log_file))
    logger.setLevel(logging.WARNING)
    return deepspeed


def _handler(log_file: Path | None) -> logging.Handler:
    if log_file is None:
        return logging.NullHandler()
    log_file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log_file, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler
