"""What a loader worker spends its time on: reading and decoding, words, masks, negatives, collation.

    python -m tests.benchmarks.worker CONFIG data.train=DIR tokenizer=DIR [KEY=VALUE ...]

The steps of a run are made in this process, as a worker makes them, with a clock around each part. The first step,
which opens the block, is not counted. Time is the processor's, so that what else runs on the machine shows little.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from tests.benchmarks.results import save, show
from vlp.assemble import assemble
from vlp.data.loader import StepLoader
from vlp.run import load_run
from vlp.tasks import pretrain

STEPS = 12


class Clock:
    """Seconds by part; a part inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._last = time.process_time()

    def lap(self) -> None:
        now = time.process_time()
        self.seconds[self._running[-1] if self._running else "order and the rest"] += now - self._last
        self._last = now

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            self.lap()
            self._running.append(part)
            try:
                return call(*arguments, **named)
            finally:
                self.lap()
                self._running.pop()

        return timed


def main(config: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    run = load_run(config, [*overrides, "run.dir=none"], "pretrain")
    made = assemble(run)
    task, clock = made.task, Clock()
    assert isinstance(task, pretrain.PretrainTask)
    for dataset in made.train:
        dataset.read = clock.around("reading", dataset.read)  # type: ignore[method-assign]
    object.__setattr__(task, "images", _Timed(task.images, clock))
    made.text.encode = clock.around("words", made.text.encode)  # type: ignore[method-assign]
    task.pairs = clock.around("negatives", task.pairs)  # type: ignore[method-assign]
    task.collate = clock.around("collation", task.collate)  # type: ignore[method-assign]
    pretrain.hide_regions = clock.around("masks", pretrain.hide_regions)  # type: ignore[attr-defined]
    for objective in task.objectives.values():
        objective.target = clock.around("masks", objective.target)  # type: ignore[method-assign]
    settings = {"image_tokens": task.image_tokens, "micro_tokens": run.batch.micro_tokens, "augment": run.data.augment}
    loader = StepLoader(made.train, made.order, task, first_step=0, last_step=STEPS + 1, **settings)  # type: ignore[arg-type]
    steps = iter(loader)
    next(steps)
    clock.seconds.clear()
    clock.lap()
    clock.seconds.clear()
    examples = sum(step.examples for step in steps)
    clock.lap()
    total = sum(clock.seconds.values())
    rows = [
        (part, f"{1e6 * seconds / examples:.0f} us", f"{100 * seconds / total:.1f} %")
        for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1])
    ]
    show(f"{config}: {examples} examples, {examples / total:,.0f} a second", ("part", "an example", "share"), rows)
    own = sum(clock.seconds[part] for part in ("masks", "negatives", "collation"))
    decoding = clock.seconds["reading"] + clock.seconds["decoding"]
    share, ratio = 100 * own / total, own / decoding
    print(f"masks, negatives and collation: {share:.1f} % of all, {ratio:.3f} of reading and decoding")
    save(f"worker-{config}", {"examples": examples, "seconds": dict(clock.seconds)})


class _Timed:
    """The task's images with a clock around `prepare`."""

    def __init__(self, images: Any, clock: Clock) -> None:
        self._images = images
        self.prepare = clock.around("decoding", images.prepare)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
