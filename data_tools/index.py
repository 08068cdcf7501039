"""`vlp-data index`: makes or renews the index of a directory of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlp.errors import ConfigError, DataError


def index(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of WebDataset tars.")],
    text_only: Annotated[bool, typer.Option("--text-only", help="Samples have neither images nor regions.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that read shards.")] = 1,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Also count the tokens of all texts with this tokenizer (directory or hub id): for an upload."
        ),
    ] = None,
) -> None:
    """Make or renew the index of shards. Shards that did not change are not read again."""
    from rich.console import Console
    from rich.progress import Progress

    from data_tools.journal import refuse_unfinished
    from vlp.data.build import build_index
    from vlp.data.storage import remote_url

    url = remote_url(directory)
    if url is not None:
        raise ConfigError(
            f"{url}: is indexed before it is uploaded; index the local directory, then upload it with index/"
        )
    refuse_unfinished(directory)
    console = Console()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("indexing", total=None)
        manifest = build_index(
            directory,
            workers=workers,
            text_only=text_only,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    captions = sum(entry.captions for entry in manifest.shards)
    questions = sum(entry.questions for entry in manifest.shards)
    parts = [f"{len(manifest.shards):,} shards", f"{manifest.samples:,} samples", f"{captions:,} captions"]
    parts += [f"{questions:,} questions"] if questions else []
    parts += [f"region features {manifest.feature_width} wide"] if manifest.feature_width else []
    parts += [f"{manifest.class_count} region classes"] if manifest.class_count else []
    console.print(f"indexed {directory}: {', '.join(parts)}", markup=False, highlight=False, soft_wrap=True)
    if manifest.left_out:
        left_out = f"left out {manifest.left_out:,} samples that have neither an image nor regions"
        console.print(left_out, markup=False, highlight=False, soft_wrap=True)
    if tokenizer is not None:
        folder = _count_tokens(directory, tokenizer)
        console.print(f"token lengths: {folder}", markup=False, highlight=False, soft_wrap=True)


def _count_tokens(directory: Path, tokenizer: str) -> Path:
    """Put the token lengths of all texts beside the index; gives their folder."""
    from vlp.data.index import open_index
    from vlp.data.lengths import token_lengths
    from vlp.data.text import TextEncoder

    text = TextEncoder(tokenizer, max_length=512)  # lengths are kept uncut, so that any length would do
    folder = token_lengths(open_index(directory), text.count, text.fingerprint, text.max_length).folder
    if not folder.is_dir():
        raise DataError(f"{folder}: cannot be written, and lengths elsewhere would not be uploaded; make it writable")
    return folder
