"""The learning rate as a pure function of the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlp.errors import ConfigError
from vlp.train.schedule import ScheduleConfig, learning_rate_factor, warmup_steps


def factors(steps: int, **config: object) -> list[float]:
    schedule = ScheduleConfig.parse(config)
    return [learning_rate_factor(schedule, step, steps) for step in range(steps)]


def test_linear_rises_to_the_peak_and_falls_towards_zero() -> None:
    found = factors(10, kind="linear", warmup=4)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    found = factors(100, kind="cosine", warmup=0, final=0.1)
    assert found[0] == 1
    assert found[50] == pytest.approx(0.55)
    assert found[99] == pytest.approx(0.1, abs=1e-3)


def test_constant_stays() -> None:
    assert factors(6, kind="constant", warmup=2)[2:] == [1, 1, 1, 1]


def test_warmup_is_steps_or_a_share() -> None:
    assert warmup_steps(ScheduleConfig(warmup=0.25), 100) == 25
    assert warmup_steps(ScheduleConfig(warmup=25), 100) == 25
    assert warmup_steps(ScheduleConfig(warmup=1), 100) == 1
    assert warmup_steps(ScheduleConfig.parse({"warmup": 0}), 100) == 0


def test_a_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule.warmup: 11 steps .* run of 10"):
        learning_rate_factor(ScheduleConfig(warmup=11), 0, 10)


@pytest.mark.parametrize("warmup", [1.5, -1, -0.1, "soon"])
def test_a_warmup_that_is_neither_is_refused(warmup: object) -> None:
    with pytest.raises(ConfigError, match="warmup"):
        ScheduleConfig.parse({"warmup": warmup})


@given(
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
    kind=st.sampled_from(["linear", "cosine", "constant"]),
    final=st.floats(0, 1),
)
def test_every_step_moves_and_none_passes_the_peak(steps: int, warmup: float, kind: str, final: float) -> None:
    found = factors(steps, kind=kind, warmup=warmup, final=final)
    assert all(0 < factor <= 1 for factor in found)
    peak = found.index(max(found))
    assert found[:peak] == sorted(found[:peak])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_stable_holds_the_peak_and_falls_at_the_end() -> None:
    found = factors(10, kind="stable", warmup=2, decay=0.3)
    assert found[2:7] == [1, 1, 1, 1, 1]
    assert found[7:] == pytest.approx([1, 2 / 3, 1 / 3])


def test_polynomial_is_a_power_of_the_line() -> None:
    line = factors(8, kind="linear", warmup=0)
    assert factors(8, kind="polynomial", warmup=0, power=3) == pytest.approx([left**3 for left in line])
