"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlp.errors import ConfigError

Images = Annotated[Path, typer.Option("--images", help="Directory of the image files.")]
RegionDir = Annotated[
    Path | None,
    typer.Option("--regions", help="Directory of region features: one <image id>.npz per image, in UNITER's naming."),
]
Out = Annotated[Path, typer.Option("--out", help="Directory for the shards, their index and import_report.json.")]
SamplesPerShard = Annotated[int, typer.Option("--samples-per-shard", min=1, help="Samples in one tar.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the shards that the directory holds.")]


def existing_file(path: Path, option: str) -> Path:
    """Raises ConfigError unless `path` is a file."""
    if not path.is_file():
        raise ConfigError(f"{option} {path}: no such file")
    return path


def existing_directory(path: Path, option: str) -> Path:
    """Raises ConfigError unless `path` is a directory."""
    if not path.is_dir():
        raise ConfigError(f"{option} {path}: no such directory")
    return path
