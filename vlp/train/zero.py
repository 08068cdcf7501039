"""DeepSpeed's JSON: the user's file says ZeRO and offload, the run says the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from vlp import resources
from vlp.errors import ConfigError, nearest

Precision = Literal["fp32", "bf16", "fp16"]

_ALLOWED = {"zero_optimization", "aio"}
_OWNED = {
    "train_batch_size": "batch.size",
    "train_micro_batch_size_per_gpu": "batch.micro_tokens",
    "gradient_accumulation_steps": "batch.micro_tokens",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_types": "precision",
    "steps_per_print": "log.every",
    "tensorboard": "log.tensorboard",
}
"""Keys of DeepSpeed that the run's own config decides, and where it does."""

BUCKET, CPU_BUCKET = 50_000_000, 10_000_000
"""Gradients that are reduced at a time unless the file says otherwise; the second at stages 0 and 3 on a CPU.
DeepSpeed's 500 million take up to two further copies of a model's gradients; messages of 100 MB are large enough for
any network. On a CPU stage 3 holds up to three buckets: where gradients gather, put in order for the ranks, and gloo's
own copy; stage 0 two."""
PREFETCH = 50_000_000
"""Weights that stage 3 gathers ahead on GPUs unless the file says otherwise: DeepSpeed's own number. None on a CPU,
where a gather ends before anything else begins: nothing would be won, and what arrives lies there twice."""

_TWIN = "prefetch_bucket_size"
"""DeepSpeed's other name for `stage3_prefetch_bucket_size`; both at once it refuses."""
_REFUSED = {
    "round_robin_gradients": "it moves parameters between partitions, so checkpoints by name would be wrong",
    "zenflow": "it updates parameters late, so a step would no longer be a function of its batch",
    "zero_quantized_gradients": "it rounds gradients differently on every number of ranks",
}


def zero_file(name: str | None) -> Path | None:
    """The DeepSpeed file that a run's config names: a shipped one or the user's own."""
    if name is None:
        return None
    return resources.shipped("deepspeed", name) if name in resources.names("deepspeed") else Path(name)


def read_zero(path: Path | None) -> dict[str, Any]:
    """The ZeRO part of DeepSpeed's configuration.

    Args:
        path: the user's JSON; none means plain data parallelism, stage 0.
    Raises:
        ConfigError: the file is missing, is not JSON, or holds keys that the run's own config decides.
    """
    if path is None:
        return {"zero_optimization": {"stage": 0}}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"deepspeed: {path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"deepspeed: {path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"deepspeed: {path}: must hold an object, such as {{'zero_optimization': {{'stage': 2}}}}")
    _check(values, str(path))
    return values


def _check(values: dict[str, Any], path: str) -> None:
    for key in values:
        if key in _OWNED:
            raise ConfigError(f"{path}: key '{key}' is decided by the run's config; remove it and set '{_OWNED[key]}'")
        if key not in _ALLOWED:
            raise ConfigError(f"{path}: key '{key}' is not allowed, only ZeRO and offload{nearest(key, _ALLOWED)}")
    section = values.get("zero_optimization", {})
    if not isinstance(section, dict) or section.get("stage", 0) not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3")
    for key, reason in _REFUSED.items():
        if section.get(key):
            raise ConfigError(f"{path}: zero_optimization.{key} cannot be used: {reason}; remove it")
    for key in ("offload_optimizer", "offload_param"):
        if (section.get(key) or {}).get("device") == "nvme":
            raise ConfigError(
                f"{path}: zero_optimization.{key}.device cannot be nvme: checkpoints by name could not read the states "
                "there; write cpu"
            )
    if section.get("compute_grad_norm") is False:
        raise ConfigError(f"{path}: zero_optimization.compute_grad_norm cannot be off: NaNs would be applied")


def stage_of(zero: dict[str, Any]) -> int:
    """The ZeRO stage of a configuration that `read_zero` gave."""
    return int(zero.get("zero_optimization", {}).get("stage", 0))


def buckets(section: dict[str, Any], stage: int, *, cuda: bool) -> dict[str, int]:
    """How many numbers are sent at a time at a stage, as keys of `zero_optimization`; those of the file come first."""
    bucket = CPU_BUCKET if stage in (0, 3) and not cuda else BUCKET
    ahead = section.get(_TWIN, PREFETCH if cuda else 0)
    sizes = {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket, "stage3_prefetch_bucket_size": ahead}
    return {key: section.get(key, size) for key, size in sizes.items()}


def _without_twin(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != _TWIN}


def engine_config(
    zero: dict[str, Any], precision: Precision, clip_norm: float | None, *, cuda: bool = False
) -> dict[str, Any]:
    """The whole configuration for DeepSpeed.

    Args:
        cuda: whether the run has GPUs, which fp16 needs.
    Raises:
        ConfigError: the precision is not supported, or ZeRO's section holds a key or value DeepSpeed does not know.
    """
    if precision == "fp16" and not cuda:
        raise ConfigError("precision: fp16 needs a GPU; on a CPU use bf16 (same memory, no loss scaling) or fp32")
    section = zero.get("zero_optimization", {})
    _check_section(section)
    config: dict[str, Any] = {
        **zero,
        "zero_optimization": _without_twin(section) | buckets(section, stage_of(zero), cuda=cuda),
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # counts are global, so micro-batches add up without a mean
        "gradient_clipping": clip_norm or 0.0,  # DeepSpeed's default is 1.0
        "zero_allow_untested_optimizer": False,
        # Offload with torch's AdamW instead of DeepSpeed's own, which would be compiled for minutes at the first start.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16"},
        # loss_scale 0 is dynamic: halved when a gradient overflows, doubled after 1000 steps without (Micikevicius et
        # al. 2018, section 3.2). DeepSpeed's own start, 2**16, and its patience of two overflows.
        "fp16": {"enabled": precision == "fp16", "loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2},
    }
    if precision != "fp32" and stage_of(zero) > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}  # many small micro-batches would vanish in bf16
    return config


def _check_section(section: dict[str, Any]) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    known = set(DeepSpeedZeroConfig.model_fields)
    known |= {field.alias for field in DeepSpeedZeroConfig.model_fields.values() if field.alias}
    for key in section:
        if key not in known:
            raise ConfigError(f"deepspeed: unknown key 'zero_optimization.{key}'{nearest(key, known)}")
    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"deepspeed: zero_optimization.{key}: {first['msg']}") from None
