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
MOST_BYTES = 256 << 20
"""40,000 shards take 7 MB."""

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
    left_out: int = Field(default=0, ge=0)
    """Samples of the tars that stand in no table, since they have neither an image nor regions."""
    feature_width: int | None = Field(default=None, ge=1)
    """Numbers per region feature; None where no sample has regions."""
    class_count: int | None = Field(default=None, ge=1)
    """Columns of `class_probs`; None where no sample has them."""
    class_ids: int | None = Field(default=None, ge=1)
    """How many classes the numbers in `classes` are of: what the regions' maker declared (`made_by.regions.classes`),
    or at least the largest plus 1; None where no sample has them."""
    attribute_ids: int | None = Field(default=None, ge=1)
    """Likewise for `attributes` (`made_by.regions.attributes`)."""
    fingerprint: str
    """Changes when anything in any shard does."""
    made_by: dict[str, Any] = {}
    """Free notes: what made the shards, from what."""
    checksum: str = ""
    """BLAKE2b of the file with zeros in this place, 16 bytes in hexadecimal: what `vlp-data verify` knows damage by."""

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
    return _digest(text.encode())


_UNSEALED = "0" * 32


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with its checksum: that of the file with zeros in the checksum's place."""
    data = manifest_bytes(manifest.model_copy(update={"checksum": _UNSEALED}))
    return manifest.model_copy(update={"checksum": _digest(data)})


def is_intact(data: bytes, manifest: Manifest) -> bool:
    """Whether the bytes of a manifest's file are those that were written; true where it has no checksum to tell by."""
    if not manifest.checksum:
        return True
    before, _, after = data.rpartition(manifest.checksum.encode())
    return _digest(before + _UNSEALED.encode() + after) == manifest.checksum


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """What stands in the file."""
    return manifest.model_dump_json(indent=1).encode() + b"\n"


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
    remedy = f"make the index again with `vlp-data index {directory}`"
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: is larger than {MOST_BYTES} bytes; {remedy}")
    return parse_manifest(path.read_bytes(), str(path), remedy)


def parse_manifest(data: bytes, where: str, remedy: str) -> Manifest:
    """The manifest in the bytes of its file; `where` and `remedy` are for the message.

    Raises:
        DataError: it is damaged, or of another version.
    """
    try:
        return Manifest.parse(json.loads(data), where)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: is not valid JSON; {remedy}") from None
    except ConfigError as error:
        raise DataError(f"{error}; {remedy}") from None
