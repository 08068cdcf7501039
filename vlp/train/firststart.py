"""A first start of DeepSpeed before the run, so that the run need not wait for what it compiles."""

from __future__ import annotations

import torch
from torch import nn

from vlp.distributed import world
from vlp.train.optimizer import OptimizerConfig, make_optimizer
from vlp.train.quiet import compiled, import_deepspeed
from vlp.train.zero import Precision, engine_config, read_zero, zero_file


def start_once(deepspeed: str | None, precision: Precision) -> list[str]:
    """Take one step of a model of one layer with a run's settings, on one rank.

    Returns:
        Names of the operations that were compiled for it; empty where all were there or none is needed.
    Raises:
        ConfigError: the settings cannot be used.
    """
    before = compiled()
    with world() as ranks:
        settings = engine_config(read_zero(zero_file(deepspeed)), precision, None, cuda=ranks.device.type == "cuda")
        module = nn.Linear(8, 8)
        optimizer = make_optimizer(module, OptimizerConfig())
        engine, *_ = import_deepspeed().initialize(model=module, optimizer=optimizer, config=settings)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        engine.backward(engine(torch.ones(1, 8, dtype=dtype, device=ranks.device)).sum())
        engine.step()
        engine.destroy()
    return sorted(compiled() - before)
