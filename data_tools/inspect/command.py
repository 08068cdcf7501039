"""`vlp-data inspect`: what a data directory holds, on the terminal and as a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_tools.options import Workers, existing_file
from vlp.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from data_tools.inspect.summary import Ranked, Row, Summary
    from vlp.data.index import Index


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of indexed shards.")],
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with sample pictures here.")] = None,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="Samples shown on the page.")] = 24,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Directory or hub id: also count tokens, and how well it covers the texts."),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--class-names", metavar="FILE", help="Names of the region classes, one a line from number 0: shown too."
        ),
    ] = None,
    workers: Workers = None,
) -> None:
    """Show what shards hold: counts, lengths, vocabulary, image sizes, regions, answers, classes and their maker."""
    from rich.console import Console

    from data_tools.inspect.page import write_page
    from vlp.data.index import open_index

    index = open_index(directory)
    names = _class_names(class_names, index) if class_names is not None else ()
    summary = _summary(index, tokenizer, names, workers)
    _show(summary, index.directory, Console())
    if html is not None:
        write_page(html, index, summary, pictures)
        typer.echo(f"wrote {html}")


def _class_names(path: Path, index: Index) -> tuple[str, ...]:
    from data_tools.importers.textfile import text_lines

    names = tuple(line.strip() for _, line in text_lines(existing_file(path, "--class-names"), blank=True))
    classes = index.manifest.class_count or index.manifest.class_ids or 0
    if len(names) < classes:
        raise ConfigError(
            f"--class-names {path}: has {len(names)} lines where regions have {classes} classes; give each a line"
        )
    return names


def _summary(index: Index, tokenizer: str | None, class_names: tuple[str, ...], workers: int | None) -> Summary:
    from data_tools.bar import Bar
    from data_tools.inspect.counting import Counts, Source, count_shard, load_encoder
    from data_tools.inspect.summary import Summary
    from data_tools.pool import Pool, processes

    # A forked worker has the tokenizer's threads no more; saying so here keeps the library from warning of it.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    manifest = index.manifest
    source = Source(index, load_encoder(tokenizer) if tokenizer is not None else None)
    counts = Counts()
    shards = range(len(manifest.shards))
    bar = Bar("reading", manifest.samples)
    with Pool(source, processes(workers, len(shards)), bar.show) as pool, bar:
        for part in pool.ordered(count_shard, shards):
            counts.add(part)
    return Summary(manifest, counts, source.encoder, class_names)


def _show(summary: Summary, directory: Path | str, console: Console) -> None:
    from rich.table import Table

    from data_tools.inspect.summary import SPREAD

    typer.echo(str(directory))
    _facts(None, summary.overview(), console)
    _facts("made by", summary.provenance(), console)
    spreads = Table("", *SPREAD)
    for column in spreads.columns[1:]:
        column.justify = "right"
    for name, figures in summary.spreads():
        spreads.add_row(name, *figures)
    if spreads.rows:
        console.print(spreads)
    counts = summary.counts
    _facts("vocabulary", summary.vocabulary(), console)
    answers = f"{counts.answers.total():,} answers, {len(counts.answers):,} different"
    if counts.unanswered:
        answers += f"; {counts.unanswered:,} questions without an answer"
    _ranked(answers, "count", summary.balance(), console)
    _ranked("region classes by their share of all probability", "most probable in", summary.classes(), console)


def _facts(title: str | None, rows: list[Row], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    if rows:
        if title is not None:
            typer.echo(title)
        console.print(table)


def _ranked(title: str, count: str, rows: list[Ranked], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("", count, "share")
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, number, share in rows:
        table.add_row(escape(name), f"{number:,}", f"{share:.1%}")
    if rows:
        typer.echo(title)
        console.print(table)
