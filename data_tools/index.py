"""`vlp-data index`: makes or renews the index of a directory of shards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from data_tools.options import Workers
from vlp.errors import ConfigError, DataError


def index(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of WebDataset tars.")],
    text_only: Annotated[bool, typer.Option("--text-only", help="Samples have neither images nor regions.")] = False,
    workers: Workers = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Also count the tokens of all texts with this tokenizer (directory or hub id): for an upload."
        ),
    ] = None,
) -> None:
    """Make or renew the index of shards. Shards that did not change are not read again."""
    from data_tools.bar import Bar
    from data_tools.journal import refuse_unfinished
    from data_tools.pool import mapped
    from data_tools.report import counted
    from vlp.data.build import build_index, shard_names
    from vlp.data.storage import remote_url

    url = remote_url(directory)
    if url is not None:
        raise ConfigError(
            f"{url}: is indexed before it is uploaded; index the local directory, then upload it with index/"
        )
    refuse_unfinished(directory)
    with Bar("indexing", len(shard_names(directory))) as bar:
        each = partial(mapped, workers=workers, watch=bar.show)
        manifest = build_index(directory, text_only=text_only, each=each)
    captions = sum(entry.captions for entry in manifest.shards)
    questions = sum(entry.questions for entry in manifest.shards)
    parts = [counted(len(manifest.shards), "shards"), counted(manifest.samples, "samples")]
    parts += [counted(number, what) for number, what in ((captions, "captions"), (questions, "questions")) if number]
    parts += [f"region features {manifest.feature_width} wide"] if manifest.feature_width else []
    parts += [f"{manifest.class_count} region classes"] if manifest.class_count else []
    typer.echo(f"indexed {directory}: {', '.join(parts)}")
    if manifest.left_out:
        typer.echo(f"left out {counted(manifest.left_out, 'samples')} that have neither an image nor regions")
    if tokenizer is not None:
        folder = _count_tokens(directory, tokenizer)
        typer.echo(f"token lengths: {folder}")


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
