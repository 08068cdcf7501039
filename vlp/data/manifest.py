"""The manifest of a data directory: one line per shard, and what all samples have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, field_validator

from vlp.config import Config
from vlp.errors import ConfigError, DataError

VERSION: Literal[1] = 1
INDEX = "index"
MANIFEST = "manifest.json"

Texts = Literal["captions", "questions", "both"]
"""Which texts of a sample make examples; `both` counts its captions first, then its questions."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard, as the manifest knows it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    """File name, `*.tar`."""
    bytes: int
    samples: int
    captions: int
    questions: int
    checksum: str
    """BLAKE2b of the tar, 16 bytes in hexadecimal."""


class Manifest(Config):
    """What `index/manifest.json` holds."""

    version: Literal[1] = VERSION
    shards: tuple[ShardEntry, ...]
    """In the order of their names."""
    text_only: bool = False
    """Samples need neither an image nor regions."""
    feature_width: int | None = Field(default=None, ge=1)
    """Numbers per region feature; None where no sample has regions."""
    class_count: int | None = Field(default=None, ge=1)
    """Columns of `class_probs`; None where no sample has them."""
    fingerprint: str
    """Changes when anything in any shard does."""
    made_by: dict[str, Any] = {}
    """Free notes: what made the shards, from what."""

    @field_validator("shards")
    @classmethod
    def _plain_names(cls, shards: tuple[ShardEntry, ...]) -> tuple[ShardEntry, ...]:
        for entry in shards:
            if not entry.name.endswith(".tar") or entry.name != Path(entry.name).name or "\\" in entry.name:
                raise ValueError(f"shard name {entry.name!r} is not a plain '*.tar'")
            if min(entry.bytes, entry.samples, entry.captions, entry.questions) < 0:
                raise ValueError(f"shard {entry.name!r} has a negative count")
        return shards

    @property
    def samples(self) -> int:
        return sum(entry.samples for entry in self.shards)


def fingerprint(entries: Iterable[ShardEntry], text_only: bool) -> str:
    """A fingerprint of a whole data directory."""
    text = json.dumps([text_only, [astuple(entry) for entry in entries]])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def examples_per_shard(manifest: Manifest, texts: Texts) -> NDArray[np.int64]:
    """Examples of each shard, [shards]."""
    counts = [
        (entry.captions if texts != "questions" else 0) + (entry.questions if texts != "captions" else 0)
        for entry in manifest.shards
    ]
    return np.array(counts, dtype=np.int64)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a data directory.

    Raises:
        DataError: it is damaged, or of another version.
        FileNotFoundError: there is none.
    """
    path = directory / INDEX / MANIFEST
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise DataError(f"{path}: is not valid JSON; make the index again with `vlp-data index {directory}`") from None
    try:
        return Manifest.parse(values, str(path))
    except ConfigError as error:
        raise DataError(f"{error}; make the index again with `vlp-data index {directory}`") from None
