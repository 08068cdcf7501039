"""A process that reports nothing for too long is ended with a sentence."""

from __future__ import annotations

import subprocess
import sys
import time

from vlp.train.watchdog import Watchdog


def test_silence_is_told_with_what_was_going_on() -> None:
    told: list[str] = []
    with Watchdog(0.3 / 60, rank=3, end=told.append) as watchdog:
        for step in range(4):
            watchdog.report(f"step {step}")
            time.sleep(0.1)
        assert told == []
        watchdog.report("step 7")
        time.sleep(0.8)
    assert len(told) == 1
    assert told[0].startswith("rank 3: step 7 has taken ")


def test_a_process_that_hangs_exits_with_1() -> None:
    code = "import time; from vlp.train.watchdog import Watchdog\nwith Watchdog(0.1 / 60, 0): time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("vlp: rank 0: starting has taken")
    assert "Traceback" not in done.stderr


def test_leaving_ends_the_watch() -> None:
    told: list[str] = []
    with Watchdog(0.1 / 60, rank=0, end=told.append):
        pass
    time.sleep(0.3)
    assert told == []
