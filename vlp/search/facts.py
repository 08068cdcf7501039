"""`search.json`: what an index holds, and where its model and its originals lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, Field

from vlp.config import Config, read_json
from vlp.data.build import checksum_of
from vlp.errors import ConfigError, DataError
from vlp.features.sources import Texts
from vlp.search.vectors import Kind
from vlp.types import Stream

FACTS = "search.json"
READ_WHOLE = 256 << 20
"""Most bytes of a file that is compared with its checksum when an index is opened, which takes 0.3 s."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something lies, as a name that outlives a move."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    path: str
    """A hub id, a URL, or a path in full: right where the index alone is moved."""
    beside: str | None = None
    """The path from the index: right where both are moved together; None for what is no path."""

    def found(self, folder: Path) -> str:
        """The name under which it is there now; the first one if it is nowhere."""
        if self.beside is not None and not Path(self.path).exists() and (folder / self.beside).exists():
            return os.path.normpath(folder / self.beside)
        return self.path


class Model(Config):
    """The model that the vectors came from."""

    place: Place
    fingerprint: str


class Source(Config):
    """What the vectors were extracted of."""

    kind: str
    """shards, images or pairs."""
    place: Place
    fingerprint: str
    texts: Texts
    images: Place | None
    """The folder that images' names are relative to; None for shards."""
    columns: str | None
    regions: Place | None
    """What else `vlp extract` was told of them."""


class Side(Config):
    """The images, or the texts."""

    count: int = Field(ge=1)
    recall: float
    """Recall@10 against the exact search."""
    bytes: int = Field(ge=1)
    """Of the file of vectors."""
    checksum: str
    """Of what stands in it before the vectors themselves (`head_checksum`)."""


class Facts(Config):
    """What stands in `search.json`."""

    kind: Kind
    width: int = Field(ge=1)
    """Numbers of a vector."""
    left_out: int = Field(ge=0)
    """Rows whose vectors are not of length 1 (damaged, or no numbers)."""
    sides: dict[Stream, Side] = Field(min_length=1)
    model: Model
    source: Source
    files: dict[str, str] = {}
    """Checksum of each file beside this one (`vlp.data.build.checksum_of`); none where the index is from before there
    were any."""


def place_of(path: str, folder: Path) -> Place:
    """The place of a path in full (or of a hub id or a URL), seen from the folder of an index."""
    return Place(path, os.path.relpath(path, folder) if os.path.isabs(path) else None)


def read_facts(folder: Path) -> Facts:
    """The facts of an index.

    Raises:
        DataError: they are missing, or damaged.
    """
    path = folder / FACTS
    try:
        return Facts.parse(read_json(path), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: is missing; build an index with `vlp index --features DIR --out {folder}`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {anew(folder)}") from None
    except ConfigError as error:
        raise DataError(f"{error}; {anew(folder)}") from None


def anew(folder: Path) -> str:
    """The advice for an index that cannot be used."""
    return f"build the index again with `vlp index --features DIR --out {folder}`"


def damaged(folder: Path, facts: Facts) -> Path | None:
    """The first file that has another checksum than at first, of those that are read in a moment."""
    for name in own_files(list(facts.sides))[1:]:
        path, wanted = folder / name, facts.files.get(name)
        if wanted is not None and path.is_file() and path.stat().st_size <= READ_WHOLE and checksum_of(path) != wanted:
            return path
    return None


def head_checksum(path: Path, count: int, width: int) -> str:
    """BLAKE2b of a faiss file, 16 bytes in hexadecimal, but for as much at its end as the vectors take.

    A damaged graph leads faiss anywhere; damaged vectors are only found wrongly, and to read them all takes seconds.
    """
    digest, left = hashlib.blake2b(digest_size=16), path.stat().st_size - 4 * count * width
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def own_files(sides: Sequence[Stream] = ("image", "text")) -> list[str]:
    """The names of an index's files."""
    strings = [f"{side}.{name}.{kind}" for side in sides for name in STRINGS for kind in ("bytes", "ends.npy")]
    return [FACTS, *(f"{side}.faiss" for side in sides), *strings]


STRINGS = ("ids", "images", "words")
"""What an index keeps of each entry, as texts."""
