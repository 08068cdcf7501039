"""What may look at every step of a run without the loop knowing what it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlp.train.engine import StepResult
    from vlp.types import Step


class Hook:
    """Called by the loop on every rank alike; a hook overrides what it needs."""

    def before(self, step: int) -> None:
        """The loop is about to do step `step` (from 1)."""

    def after(self, step: Step, result: StepResult, record: dict[str, float]) -> None:
        """A step is done. `record` is what `metrics.jsonl` gets; a hook may add numbers to it.

        Raises:
            VlpError: the run must end, on all ranks; the loop saves what is done.
        """

    def close(self) -> None:
        """The loop has ended, well or not."""
