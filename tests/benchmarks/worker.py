"""What a loader worker spends its time on: reading and decoding, words, masks, negatives, collation, sending.

    python -m tests.benchmarks.worker CONFIG data.train=DIR tokenizer=DIR [KEY=VALUE ...]

The steps of a run are made in this process, as a worker makes them, with a clock around each part; the first steps,
which open the block and find memory, are not counted. Masks are all that hides and asks, with the key
of each example; negatives are the draw of its pair and of what others lend it; what they lend is read. Sending is the
copy into shared memory, from where the trainer takes the batch. The clock is the wall's, which is ten times as cheap to
look at as the processor's; a step that took longer than the processor gave it (the machine did other work) is not
counted. What the clock itself takes, measured on calls of nothing in the same run, is taken off each part.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tests.benchmarks.results import save, show
from vlp.assemble import assemble
from vlp.data import slots
from vlp.data.loader import StepLoader
from vlp.data.parcels import Parcel, Pool
from vlp.data.workers import begin
from vlp.run import load_run
from vlp.tasks import pretrain

FIRST, STEPS = 4, 40
_UNDISTURBED = 1.03
"""Wall time of a step, at most, for each second of the processor's."""
_REST = "order and the rest"


class Clock:
    """Seconds by part; a part inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running = [_REST]
        self._last = time.perf_counter()
        self._own = (0.0, 0.0)
        self._own = self._empty_call()

    def lap(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._last
        self._last = now

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            self.lap()
            self.seconds[self._running[-1]] -= self._own[0]
            self._running.append(part)
            try:
                return call(*arguments, **named)
            finally:
                self.lap()
                self.seconds[part] -= self._own[1]
                self._running.pop()

        return timed

    def _empty_call(self) -> tuple[float, float]:
        """What a call of nothing adds to the part around it and to its own."""
        nothing, calls = self.around("nothing", lambda *arguments: None), 20_000
        self.lap()
        self.seconds.clear()
        for _ in range(calls):
            nothing(self, None)
        self.lap()
        return self.seconds[_REST] / calls, self.seconds["nothing"] / calls


def main(config: str, *overrides: str) -> None:
    run = load_run(config, [*overrides, "run.dir=none"], "pretrain")
    made = assemble(run)
    begin()
    task, clock = made.task, Clock()
    assert isinstance(task, pretrain.PretrainTask)
    for dataset in made.train:
        dataset.read = clock.around("reading", dataset.read)  # type: ignore[method-assign]
        dataset.read_features = clock.around("reading", dataset.read_features)  # type: ignore[method-assign]
    object.__setattr__(task, "images", _Timed(task.images, clock))
    made.text.encode = clock.around("words", made.text.encode)  # type: ignore[method-assign]
    task.pairs = clock.around("negatives", task.pairs)  # type: ignore[method-assign]
    task.ask = clock.around("masks", task.ask)  # type: ignore[method-assign]
    task.collate = clock.around("collation", task.collate)  # type: ignore[method-assign]
    for name, part in (("derive_each", "masks"), ("Draw", "masks"), ("generator", "decoding")):
        setattr(slots, name, clock.around(part, getattr(slots, name)))
    settings = {"image_tokens": task.image_tokens, "micro_tokens": run.batch.micro_tokens, "augment": run.data.augment}
    loader = StepLoader(made.train, made.order, task, first_step=0, last_step=FIRST + STEPS, **settings)  # type: ignore[arg-type]
    examples, seconds = _measured(loader, clock)
    total = sum(seconds.values())
    rows = [
        (part, f"{1e6 * spent / examples:.1f} us", f"{100 * spent / total:.1f} %")
        for part, spent in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    show(f"{config}: {examples} examples, {examples / total:,.0f} a second", ("part", "an example", "share"), rows)
    own = sum(seconds[part] for part in ("masks", "negatives", "collation"))
    decoding = seconds["reading"] + seconds["decoding"]
    share, ratio = 100 * own / total, own / decoding
    print(f"masks, negatives and collation: {share:.1f} % of all, {ratio:.3f} of reading and decoding")
    save(f"worker-{config}", {"examples": examples, "seconds": seconds})


def _measured(loader: StepLoader, clock: Clock) -> tuple[int, dict[str, float]]:
    """Examples and seconds by part of the steps in which the processor did nothing else."""
    examples, seconds = 0, dict.fromkeys(("masks", "negatives", "collation", "reading", "decoding"), 0.0)
    steps, pool, send = iter(loader), Pool(), clock.around("sending", Parcel.of)
    for number in range(FIRST + STEPS):
        clock.lap()
        clock.seconds.clear()
        began = time.perf_counter(), time.process_time()
        step = next(steps)
        parcel = send(step, pool)
        clock.lap()
        wall, own = time.perf_counter() - began[0], time.process_time() - began[1]
        if number >= FIRST and wall < _UNDISTURBED * own:
            examples += step.examples
            for part, spent in clock.seconds.items():
                seconds[part] = seconds.get(part, 0.0) + spent
        parcel.open()  # and dropped: the trainer's part, after which the memory is free again
    return examples, seconds


class _Timed:
    """The task's images with a clock around `prepare`."""

    def __init__(self, images: Any, clock: Clock) -> None:
        self._images = images
        self.prepare = clock.around("decoding", images.prepare)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
