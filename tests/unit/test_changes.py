"""What differs between two configs, by key."""

from vlp.train.changes import differences, listed


def test_differences_are_told_by_the_key_s_path() -> None:
    before = {"optimizer": {"learning_rate": 0.1, "betas": [0.9, 0.98]}, "ema": None, "gone": 1}
    now = {"optimizer": {"learning_rate": 0.2, "betas": [0.9, 0.98]}, "ema": {"decay": 0.9}, "new": 2}
    found = differences(before, now)
    assert found == {
        "optimizer.learning_rate": (0.1, 0.2),
        "ema": (None, {"decay": 0.9}),
        "gone": (1, "absent"),
        "new": ("absent", 2),
    }
    assert differences(before, before) == {}
    assert listed(found, most=2) == "optimizer.learning_rate (0.1, now 0.2), ema (none, now {'decay': 0.9}) and 2 more"


def test_a_long_value_is_cut() -> None:
    assert len(listed({"a": ("x" * 500, "y")})) < 90
