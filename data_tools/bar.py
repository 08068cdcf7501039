"""How far a command is: a bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A bar that moves while its `with` lasts.

    Args:
        title: what is going on: "importing".
        total: of how much; None where that is not known yet.
    """

    def __init__(self, title: str, total: int | None = None) -> None:
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        console = Console()
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._task = self._bar.add_task(title, total=total)

    def show(self, done: int, total: int | None = None) -> None:
        """So much is done; and of so much, if that was not known."""
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
