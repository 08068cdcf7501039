"""`manifest.json` of a folder of features: what they are, of what, by which model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from vlp.config import Config, read_json
from vlp.errors import ConfigError, DataError
from vlp.features.files import Format
from vlp.features.kinds import feature
from vlp.features.rows import Dtype, Layout
from vlp.features.sources import Texts

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class PartEntry:
    """A file of the folder."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    file: str
    rows: int
    bytes: int
    """Of the file: one that was cut off since, or is gone, is made again."""
    quarantined: int
    """Lines of `quarantine.jsonl` that are of its examples, behind those of the parts before it."""
    checksum: str | None = None
    """Of the file as it was written (`vlp.data.build.checksum_of`); none in folders from before there was one."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """The model that made the features."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    """Its directory or hub id; a directory in full, so that it is found from everywhere."""
    fingerprint: str
    task: str | None
    config: dict[str, Any]


class Manifest(Config):
    """What stands in `manifest.json`."""

    rows: int = Field(ge=0)
    what: tuple[str, ...]
    """Names of the features."""
    shapes: dict[str, list[int | str]]
    """Of one example; T, M and J are its text tokens, its image tokens and both."""
    widths: dict[str, int]
    """Numbers of a state or a vector; how many maps there are."""
    format: Format
    dtype: Dtype
    data: str
    """Fingerprint of the source."""
    source: str
    """Where it lay; what is a local path stands here in full, as below."""
    source_kind: str
    """shards, images or pairs."""
    images: str
    """The folder that rows' images are relative to; empty for shards."""
    options: dict[str, str]
    """What else `vlp extract` was told about the source."""
    texts: Texts
    model: ModelEntry
    quarantined: int = Field(ge=0)
    parts: tuple[PartEntry, ...]
    """Files, in the order of their rows."""
    request: dict[str, Any]
    """What must be the same for an extraction to go on."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for part in self.parts:
            if part.file != Path(part.file).name or part.rows < 0:
                raise ValueError(f"part {part.file!r} is no plain name of a file, or has {part.rows} rows")
        for what in ("rows", "quarantined"):
            if sum(getattr(part, what) for part in self.parts) != getattr(self, what):
                raise ValueError(f"the parts have another sum of '{what}' than the whole")
        for name in self.what:
            try:
                feature(name)
            except ConfigError as error:
                raise ValueError(str(error)) from None
            if self.widths.get(name, 0) < 1:
                raise ValueError(f"'{name}' has no width")
        return self

    @property
    def layout(self) -> Layout:
        """Of the rows in the files."""
        return Layout(tuple(feature(name) for name in self.what), self.widths, self.dtype)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        DataError: it is missing, or damaged.
    """
    path = folder / MANIFEST
    try:
        return Manifest.parse(read_json(path), str(path))
    except FileNotFoundError:
        raise DataError(_missing(folder)) from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is a file; give the folder that `vlp extract --out` wrote") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove {folder} and extract again") from None
    except ConfigError as error:
        raise DataError(f"{error}; it is not the manifest of an extraction by this version of vlp") from None


def _missing(folder: Path) -> str:
    if not folder.exists():
        return f"{folder}: there is no such folder; give the one that `vlp extract --out` wrote"
    if (folder / ".work").exists():
        return f"{folder}: the extraction is not finished; give the same `vlp extract` command again, and it goes on"
    return f"{folder}: holds no features (no {MANIFEST}); give the folder that `vlp extract --out` wrote"


def lasting(name: str) -> str:
    """A local path in full, so that it means the same from every folder; hub ids and URLs as they are."""
    return os.path.abspath(name) if name and Path(name).exists() else name
