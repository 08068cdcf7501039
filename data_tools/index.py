"""`vlp-data index`: makes or renews the index of a directory of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def index(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of WebDataset tars.")],
    text_only: Annotated[bool, typer.Option("--text-only", help="Samples have neither images nor regions.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that read shards.")] = 1,
) -> None:
    """Make or renew the index of shards. Shards that did not change are not read again."""
    from rich.console import Console
    from rich.progress import Progress

    from vlp.data.build import build_index

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
