"""What a user's DeepSpeed file may hold."""

import json
from pathlib import Path

import pytest

from vlp.errors import ConfigError
from vlp.train.zero import BUCKET, CPU_BUCKET, PREFETCH, engine_config, read_zero, stage_of


def written(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "zero.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_shipped_files_are_right(root: Path, stage: int) -> None:
    zero = read_zero(root / "deepspeed_configs" / f"zero{stage}.json")
    assert stage_of(zero) == stage
    engine_config(zero, "fp32", None)


def test_every_shipped_file_is_right(root: Path) -> None:
    for path in (root / "deepspeed_configs").glob("*.json"):
        engine_config(read_zero(path), "bf16", 1.0)


def test_without_a_file_bf16_keeps_fp32_sums() -> None:
    assert stage_of(read_zero(None)) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_batch_size": 8}, r"zero.json: key 'train_batch_size' is decided by the run's config; .* 'batch.size'"),
        ({"bf16": {"enabled": True}}, "key 'bf16' .* set 'precision'"),
        ({"optimizer": {}}, "key 'optimizer' is decided"),
        ({"gradient_clipping": 1.0}, "set 'optimizer.clip_norm'"),
        ({"zero_optimisation": {}}, r"key 'zero_optimisation' is not allowed.*did you mean 'zero_optimization'"),
        ({"zero_allow_untested_optimizer": True}, "'zero_allow_untested_optimizer' is not allowed"),
        ({"zero_optimization": {"stage": 4}}, r"zero_optimization.stage must be 0, 1, 2 or 3"),
        ({"zero_optimization": 2}, r"zero_optimization.stage must be"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "round_robin_gradients cannot be used"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "compute_grad_norm cannot be off"),
        ([], "must hold an object"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_a_file_that_conflicts_is_refused(tmp_path: Path, values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_zero(written(tmp_path, values))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_zero(tmp_path / "no.json")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"stage": 2, "reduce_buckt_size": 1}, r"unknown key 'zero_optimization.reduce_buckt_size' \(did you mean"),
        ({"stage": 2, "reduce_bucket_size": "big"}, r"zero_optimization.reduce_bucket_size"),
    ],
)
def test_a_section_deepspeed_does_not_know_is_refused(section: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_config({"zero_optimization": section}, "fp32", None)


def test_clipping_is_always_written() -> None:
    assert engine_config({}, "fp32", None)["gradient_clipping"] == 0.0
    assert engine_config({}, "fp32", 2.0)["gradient_clipping"] == 2.0


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_offload_to_a_disk_is_refused(tmp_path: Path, key: str) -> None:
    section = {"stage": 3, key: {"device": "nvme", "nvme_path": "somewhere"}}
    with pytest.raises(ConfigError, match=f"{key}.device cannot be nvme: .*write cpu"):
        read_zero(written(tmp_path, {"zero_optimization": section}))


def test_buckets_are_small_unless_the_file_says_otherwise() -> None:
    section = {"stage": 2, "reduce_bucket_size": 7}
    assert engine_config({"zero_optimization": section}, "fp32", None)["zero_optimization"]["reduce_bucket_size"] == 7
    for stage, cuda, bucket in ((0, False, CPU_BUCKET), (2, False, BUCKET), (3, False, CPU_BUCKET), (3, True, BUCKET)):
        given = engine_config({"zero_optimization": {"stage": stage}}, "fp32", None, cuda=cuda)
        assert given["zero_optimization"]["reduce_bucket_size"] == bucket


@pytest.mark.parametrize(
    ("given", "cuda", "ahead"),
    [
        ({}, False, 0),
        ({}, True, PREFETCH),
        ({"stage3_prefetch_bucket_size": 9}, False, 9),
        ({"prefetch_bucket_size": 9}, False, 9),
    ],
)
def test_stage_3_gathers_nothing_ahead_on_a_cpu_unless_the_file_says_so(
    given: dict[str, int], cuda: bool, ahead: int
) -> None:
    made = engine_config({"zero_optimization": {"stage": 3, **given}}, "fp32", None, cuda=cuda)["zero_optimization"]
    assert made["stage3_prefetch_bucket_size"] == ahead
