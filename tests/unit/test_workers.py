import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.loader_making import FakeDataset, FakePreparer, many_steps, order_of, steps_of
from vlp.data.workers import in_order
from vlp.errors import CheckpointError, ConfigError, DataError
from vlp.types import Batch, Example


@pytest.mark.parametrize("error", [ConfigError("one sentence"), CheckpointError("another")])
def test_an_error_for_the_user_arrives_as_it_was(error: Exception) -> None:
    class Broken(FakePreparer):
        def collate(self, examples: list[list[Example]], step: int) -> Batch:
            raise error

    dataset = FakeDataset([9, 9])
    with pytest.raises(type(error)) as caught:
        steps_of([dataset], order_of(dataset), preparer=Broken(), workers=1)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


def test_any_other_error_of_a_worker_stays_one() -> None:
    dataset = FakeDataset([9, 9])
    with pytest.raises(ZeroDivisionError) as caught:
        steps_of([dataset], order_of(dataset), preparer=FakePreparer(error=ZeroDivisionError()), workers=1)
    assert not children(), f"a kept traceback ({caught.tb}) must not keep workers"


def children() -> list[int]:
    """The loader's workers; ranks that other tests keep alive are no forks of this process."""
    alive = multiprocessing.active_children()
    return [process.pid or 0 for process in alive if isinstance(process, multiprocessing.context.ForkProcess)]


def test_workers_ignore_signals_and_end_with_the_loader() -> None:
    steps = iter(many_steps(FakeDataset([9, 9]), workers=2))
    next(steps)
    workers = children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    assert [next(steps).number for _ in range(50)] == list(range(1, 51))
    assert children() == workers
    steps.close()
    assert not children()


def test_a_worker_does_not_search_what_was_imported_for_garbage() -> None:
    def looked_through(number: int) -> tuple[int, int]:
        return len(gc.get_objects()), gc.get_threshold()[0]

    (found, threshold), (here, usual) = next(in_order(looked_through, range(1), workers=1)), looked_through(0)
    assert found < here / 10
    assert threshold > usual


def test_a_worker_that_is_stuck_does_not_hold_up_the_end() -> None:
    class Stuck(FakePreparer):
        def collate(self, examples: list[list[Example]], step: int) -> Batch:
            if step > 2:
                time.sleep(60)
            return super().collate(examples, step)

    steps = iter(many_steps(FakeDataset([9, 9]), workers=2, preparer=Stuck()))
    next(steps)
    start = time.monotonic()
    steps.close()
    assert time.monotonic() - start < 20  # 2 seconds and what a busy machine adds
    assert not children()


TRAIN_FOREVER = """
from tests.unit.loader_making import FakeDataset, many_steps
for step in many_steps(FakeDataset([9, 9]), workers=2):
    if step.number in (0, 20):
        print(step.number, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in Linux's /proc")
@pytest.mark.parametrize(("kind", "to_all"), [(signal.SIGINT, True), (signal.SIGKILL, False)])
def test_workers_end_with_their_parent(kind: signal.Signals, to_all: bool, root: Path) -> None:
    # As Ctrl-C does, the first signal goes to parent and workers alike, while these are being started too.
    arguments = [sys.executable, "-c", TRAIN_FOREVER]
    with subprocess.Popen(
        arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        assert [parent.stdout.readline().strip() for _ in range(2)] == ["0", "20"]
        workers = _children_of(parent.pid)
        assert len(workers) == 2
        if to_all:
            os.killpg(parent.pid, kind)
        else:
            os.kill(parent.pid, kind)
        parent.wait(timeout=60)
        _wait(lambda: not any(_alive(worker) for worker in workers))
        said = parent.stderr.read()
        if to_all:  # a parent that is killed outright leaves its workers in the midst of something
            assert said.count("Traceback") == 1, f"the parent alone tells of the interruption: {said}"


def _children_of(parent: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def _wait(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def test_a_dead_worker_is_a_sentence() -> None:
    steps = iter(many_steps(FakeDataset([9, 9]), workers=1))
    next(steps)
    os.kill(children()[0], signal.SIGKILL)
    with pytest.raises(DataError, match=r"^a loader worker died .*data\.workers"):
        list(steps)
