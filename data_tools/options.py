"""Arguments that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from data_tools.writer import SAMPLES_PER_SHARD
from vlp.errors import ConfigError

QUALITY = 90
"""Of JPEGs made by --resize: at 90 the loss is below what a further resize to a model's input takes away."""

Images = Annotated[Path, typer.Option("--images", metavar="DIR", help="Directory of the image files.")]
ImagesIfAny = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", help="Directory of the image files; not needed where --regions is given."),
]
RegionPath = Annotated[
    Path | None,
    typer.Option(
        "--regions",
        metavar="PATH",
        help="Region features: a directory with one <image id>.npz per image (UNITER's naming), "
        "a bottom-up-attention .tsv, or one .npz with a vector per image.",
    ),
]
Out = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="Directory for the shards, their index and import_report.json."),
]
SamplesPerShard = Annotated[int, typer.Option("--samples-per-shard", min=1, help="Images of one tar.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the shards that the directory holds.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, show_default="all usable CPUs", help="Processes; any number writes the same."),
]


@dataclass(frozen=True, slots=True)
class Choices:
    """What the options that all importers share were set to."""

    out: Path
    regions: Path | None = None
    split: tuple[tuple[str, float], ...] = ()
    """Names of the parts and their shares, which add up to 1; nothing where the import is not split."""
    resize: int | None = None
    quality: int = QUALITY
    min_side: int | None = None
    max_aspect: float | None = None
    drop_duplicates: bool = False
    limit: int | None = None
    samples_per_shard: int = SAMPLES_PER_SHARD
    overwrite: bool = False
    workers: int | None = None


def shared_options(
    out: Out,
    regions: RegionPath = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="NAME=SHARE,...",
            help="Parts, by a hash of the image id: 'train=0.95,val=0.05' writes OUT/train and OUT/val.",
        ),
    ] = None,
    resize: Annotated[
        int | None,
        typer.Option(
            "--resize",
            min=1,
            metavar="PIXELS",
            help="Shrink images whose short side is longer to it, as JPEG; without, the files' own bytes are kept.",
        ),
    ] = None,
    quality: Annotated[int, typer.Option("--quality", min=1, max=100, help="JPEG quality of --resize.")] = QUALITY,
    min_side: Annotated[
        int | None,
        typer.Option("--min-side", min=1, metavar="PIXELS", help="Leave out images whose short side is shorter."),
    ] = None,
    max_aspect: Annotated[
        float | None,
        typer.Option(
            "--max-aspect",
            min=1,
            metavar="RATIO",
            help="Leave out images whose long side is more than RATIO x the short.",
        ),
    ] = None,
    drop_duplicates: Annotated[
        bool,
        typer.Option("--drop-duplicates", help="Leave out images whose file has the same bytes as an earlier one's."),
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Take the first N images only, to try things out.")
    ] = None,
    samples_per_shard: SamplesPerShard = SAMPLES_PER_SHARD,
    overwrite: Overwrite = False,
    workers: Workers = None,
) -> Choices:
    """The options of every importer, as typer reads them from this signature.

    Raises:
        ConfigError: a split that is none.
    """
    return Choices(
        out=out,
        regions=regions,
        split=parse_split(split) if split is not None else (),
        resize=resize,
        quality=quality,
        min_side=min_side,
        max_aspect=max_aspect,
        drop_duplicates=drop_duplicates,
        limit=limit,
        samples_per_shard=samples_per_shard,
        overwrite=overwrite,
        workers=workers,
    )


OF_IMAGES = ("regions", "resize", "quality", "min_side", "max_aspect", "drop_duplicates")
"""Options that a source without images has no use for."""


def parse_split(text: str) -> tuple[tuple[str, float], ...]:
    """Names and shares of `train=0.95,val=0.05`.

    Raises:
        ConfigError: not of this form, a name that is no plain folder, or shares that do not add up to 1.
    """
    parts = []
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise ConfigError(f"--split {text}: '{part}' is not NAME=SHARE with a share above 0 and at most 1")
        if not plain_name(name):
            raise ConfigError(f"--split {text}: '{name}' cannot name a folder; use letters, digits, '-' and '_'")
        parts.append((name, share))
    if len({name for name, _ in parts}) < len(parts):
        raise ConfigError(f"--split {text}: a name stands twice; give every part its own")
    if abs(sum(share for _, share in parts) - 1) > 1e-6:
        total = sum(share for _, share in parts)
        raise ConfigError(f"--split {text}: the shares add up to {total:g}; make them add up to 1")
    return tuple(parts)


def plain_name(name: str) -> bool:
    """Whether a name is safe and unmistakable as that of a folder among shards."""
    return name.replace("-", "_").isidentifier() and name != "index"


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


def files_of(paths: Iterable[Path], option: str, ending: str) -> list[Path]:
    """Files as given, and in place of a directory its files with this ending, by name.

    Raises:
        ConfigError: a path that is not there, or a directory without such a file.
    """
    files = []
    for path in paths:
        found = sorted(path.glob(f"*{ending}")) if path.is_dir() else [existing_file(path, option)]
        if not found:
            raise ConfigError(f"{option} {path}: holds no *{ending} file")
        files += found
    return files
