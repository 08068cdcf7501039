"""The loss scale of fp16: it falls on overflow, rises after a while, and is kept in checkpoints."""

from types import SimpleNamespace

import pytest
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

from vlp.train.scaler import scaler_state, set_scaler_state
from vlp.train.zero import engine_config


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler asks for the rank before it logs, and there is no process group here."""
    monkeypatch.setattr("deepspeed.runtime.fp16.loss_scaler.dist.get_rank", lambda: 1)


def dynamic() -> SimpleNamespace:
    """What DeepSpeed makes of our settings."""
    settings = engine_config({}, "fp16", None, cuda=True)["fp16"]
    assert settings["loss_scale"] == 0
    scaler = DynamicLossScaler(
        init_scale=2 ** settings["initial_scale_power"],
        scale_window=1000,
        min_scale=1,
        delayed_shift=settings["hysteresis"],
        consecutive_hysteresis=False,
        raise_error_at_min_scale=True,
        dtype=None,
    )
    return SimpleNamespace(loss_scaler=scaler)


def walk(optimizer: SimpleNamespace, overflows: list[bool]) -> list[float]:
    scales = []
    for overflow in overflows:
        optimizer.loss_scaler.update_scale(overflow)
        scales.append(optimizer.loss_scaler.loss_scale)
    return scales


def test_the_scale_falls_after_the_second_overflow_and_rises_after_a_window() -> None:
    assert walk(dynamic(), [True, True, True]) == [2**16, 2**15, 2**14]
    assert walk(dynamic(), [False] * 2001)[-1] == 2**18


def test_a_scaler_goes_on_where_another_left_off() -> None:
    history = [False] * 700 + [True, True] + [False] * 1500 + [True] * 3 + [False] * 1400
    whole = walk(dynamic(), history)
    for cut in (1, 701, 702, 2204, 3000):
        first, second = dynamic(), dynamic()
        walk(first, history[:cut])
        set_scaler_state(second, scaler_state(first))
        assert walk(second, history[cut:]) == whole[cut:]


def test_other_precisions_have_no_scale() -> None:
    plain = SimpleNamespace(loss_scaler=LossScaler(1.0))
    assert scaler_state(plain) == {}
    assert scaler_state(SimpleNamespace()) == {}
    set_scaler_state(plain, {"cur_scale": 8.0})
    assert plain.loss_scaler.loss_scale == 1.0
