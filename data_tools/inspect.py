"""`vlp-data inspect`: what a data directory holds, on the terminal and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from data_tools.summary import Summary


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of indexed shards.")],
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with sample pictures here.")] = None,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="Samples shown on the page.")] = 24,
) -> None:
    """Show what shards hold. Counts, lengths of texts, image sizes, regions per image, balance of the answers."""
    from rich.console import Console
    from rich.progress import track

    from data_tools.page import write_page
    from data_tools.summary import summarise
    from vlp.data.index import open_index

    console = Console()
    index = open_index(directory)
    shards = track(
        range(len(index.manifest.shards)), "reading", console=console, disable=not console.is_terminal, transient=True
    )
    summary = summarise(index, shards)
    _show(summary, directory, console)
    if html is not None:
        write_page(html, index, summary, pictures)
        _line(console, f"wrote {html}")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _show(summary: Summary, directory: Path, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    _line(console, str(directory))
    overview = Table(show_header=False)
    for name, value in summary.overview():
        overview.add_row(name, escape(value))
    console.print(overview)
    spreads = Table("", "least", "median", "mean", "95 %", "most")
    for column in spreads.columns[1:]:
        column.justify = "right"
    for name, figures in summary.spreads():
        spreads.add_row(name, *figures)
    if spreads.rows:
        console.print(spreads)
    if summary.answers:
        _show_answers(summary, console)


def _show_answers(summary: Summary, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    title = f"{summary.answers.total():,} answers, {len(summary.answers):,} different"
    if summary.unanswered:
        title += f"; {summary.unanswered:,} questions without an answer"
    _line(console, title)
    table = Table("answer", "count", "share")
    table.columns[1].justify = table.columns[2].justify = "right"
    for answer, count, share in summary.balance():
        table.add_row(escape(answer), f"{count:,}", f"{share:.1%}")
    console.print(table)
