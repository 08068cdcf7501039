"""What features are extracted of: indexed shards, a folder of images, or a table of pairs (`tables.py`).

A source is cut into groups (a shard is one); examples of a group are read by number, in any order, from any process.

Shape suffixes: E examples of a group.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vlp.data.dataset import Dataset
from vlp.data.imagefile import IMAGE_EXTENSIONS
from vlp.data.index import Index
from vlp.data.recent import Recent
from vlp.data.samples import MAX_TEXT_BYTES, Fault
from vlp.data.shards import BadSample, ShardReader
from vlp.data.slots import numbered_text
from vlp.errors import DataError
from vlp.features.preparing import Files, Item, Preparing, printable
from vlp.types import Sample

Texts = Literal["captions", "questions", "both", "none"]
"""Which texts of a shard's samples make examples; `none` gives one example per image, with an empty text."""
_OPEN = 16
"""Shards whose keys are kept at hand."""
MAX_KEY = 1024
"""Characters of a key."""


@dataclass(frozen=True)
class Group:
    """A part of a source that lies together."""

    name: str
    """What the files of its features begin with."""
    examples: int


@dataclass(frozen=True)
class Lengths:
    """What is known of a group's examples before they are read."""

    text_E: NDArray[np.int64]
    """Tokens of the text; of a table about as many."""
    image_E: NDArray[np.int64]
    sample_E: NDArray[np.int64]
    """Number of the sample; examples of one sample stay together."""


class Source(Protocol):
    """Where examples come from."""

    kind: str
    """shards, images or pairs."""
    place: str
    """As the user named it."""
    fingerprint: str
    texts: Texts
    images: str
    """The folder that names of images are relative to; empty where images lie in shards."""
    options: Mapping[str, str]
    """What else `vlp extract` was told (`columns`, `images`, `regions`), to open the source again."""

    @property
    def groups(self) -> list[Group]: ...

    def lengths(self, group: int) -> Lengths: ...

    def items(self, group: int, first: int, last: int) -> Iterator[Item]:
        """The examples `first` to `last - 1` of a group; bad ones too, with what is wrong."""

    def image(self, name: str) -> Sample | Files:
        """An image as the model reads it, by its name (`Item.image`).

        Raises:
            DataError: there is none of that name, or it cannot be read.
        """

    def photo(self, name: str) -> bytes | Path | None:
        """Its photo, to be shown; None where there is only what a detector made of it. Raises likewise."""


class ShardSource:
    """Indexed shards, local or remote.

    Args:
        data: a dataset, whose texts make examples; or an index, for images alone.
    """

    kind = "shards"
    images = ""
    options: Mapping[str, str] = {}

    def __init__(self, data: Dataset | Index, preparing: Preparing) -> None:
        self._dataset = data if isinstance(data, Dataset) else None
        self._index = data.index if isinstance(data, Dataset) else data
        self._reader = ShardReader(self._index)
        self._preparing = preparing
        self.place = str(self._index.directory)
        self.fingerprint = self._index.manifest.fingerprint
        self.texts: Texts = self._dataset.texts if self._dataset else "none"
        names = (entry.name.removesuffix(".tar") for entry in self._index.manifest.shards)
        self._shards = {name: number for number, name in enumerate(names)}
        self._rows = Recent(self._row_by_key, _OPEN)

    def _row_by_key(self, group: int) -> dict[str, int]:
        return {key: row for row, key in enumerate(self._index.table(group).keys)}

    @property
    def groups(self) -> list[Group]:
        shards = self._index.manifest.shards
        counts = self._dataset.examples_S.tolist() if self._dataset else [entry.samples for entry in shards]
        names = [entry.name.removesuffix(".tar").replace("/", "_") for entry in shards]
        return [Group(name, count) for name, count in zip(names, counts, strict=True)]

    def has_images(self) -> bool:
        """Whether there is any photo."""
        return any(self._index.table(group).has_image_S.any() for group in range(len(self._index.manifest.shards)))

    def lengths(self, group: int) -> Lengths:
        table = self._index.table(group)
        if not self._preparing.wants_regions:
            tokens = self._preparing.image_tokens(0) if self._preparing.wants_image else 0
            image_S = np.where(table.has_image_S, tokens, 0).astype(np.int64)
        else:
            image_S = np.array([self._preparing.image_tokens(count) for count in table.regions_S.tolist()], np.int64)
        if self._dataset is None:
            return Lengths(np.full(len(table), 2), image_S, np.arange(len(table)))
        block, _ = self._dataset.open_block((group,))
        return Lengths(block.tokens_E.astype(np.int64), image_S[block.sample_E], block.sample_E.astype(np.int64))

    def items(self, group: int, first: int, last: int) -> Iterator[Item]:
        table, shard = self._index.table(group), self._index.manifest.shards[group].name.removesuffix(".tar")
        if self._dataset is None:
            rows = [(row, 0) for row in range(first, last)]
        else:
            block, _ = self._dataset.open_block((group,))
            rows = [(int(block.sample_E[e]), int(block.text_E[e])) for e in range(first, last)]
        read: tuple[int, Sample | BadSample] | None = None
        for row, number in rows:
            if read is None or read[0] != row:
                read = row, self._sample(group, row)
            place = f"{shard}/{table.keys[row]}"
            yield self._item(read[1], place if self._dataset is None else f"{place}#{number}", number)

    def image(self, name: str) -> Sample:
        wanted = {"image": self._preparing.wants_image, "regions": self._preparing.wants_regions}
        return self._reader.read(*self._found(name), **wanted, texts=False)

    def photo(self, name: str) -> bytes | None:
        return self._reader.read(*self._found(name), image=True, regions=False, texts=False).image

    def _found(self, name: str) -> tuple[int, int]:
        """Shard and row of a sample."""
        shard, _, key = name.partition("/")
        if shard not in self._shards:
            raise DataError(f"{self.place}: has no shard '{shard}', so it is not what was extracted")
        group = self._shards[shard]
        row = self._rows[group].get(key)
        if row is None:
            raise DataError(f"{self.place}: {shard}.tar has no sample '{key}', so it is not what was extracted")
        return group, row

    def _sample(self, group: int, row: int) -> Sample | BadSample:
        wanted = {"image": self._preparing.wants_image, "regions": self._preparing.wants_regions}
        try:
            return self._reader.read(group, row, **wanted, texts=self._dataset is not None)
        except BadSample as bad:
            return bad

    def _item(self, sample: Sample | BadSample, id: str, number: int) -> Item:
        if isinstance(sample, BadSample):
            return Item(id, sample.key, "", fault=(sample.member, sample.reason))
        words = numbered_text(sample, self._dataset.texts, number)[0] if self._dataset else ""
        name = "" if sample.image is None and sample.regions is None else id.rpartition("#")[0] if self._dataset else id
        return self._preparing.item(id, sample.key, words, sample, name)


class FolderSource:
    """A folder of images with all below it; the text of `photo.jpg` is `photo.txt` beside it, where there is one.

    Args:
        regions: a folder of npz files named as the images are, for a model that reads regions.
    Raises:
        DataError: there is no image.
    """

    kind = "images"
    texts: Texts = "captions"

    def __init__(self, folder: Path, preparing: Preparing, regions: Path | None = None) -> None:
        self._preparing, self._regions, self._folder = preparing, regions, folder
        self.place = self.images = str(folder)
        self.options: Mapping[str, str] = {"regions": str(regions)} if regions else {}
        self._files = sorted(_images(folder))
        if not self._files:
            raise DataError(f"{folder}: holds neither shards nor an image ({', '.join(IMAGE_EXTENSIONS)})")
        self._names = {printable(name): name for name in self._files}
        self._stems = Counter(_stem(name) for name in self._files)
        self.fingerprint = self._digest()

    def _digest(self) -> str:
        """Of the images, and of the texts and regions that stand with them: their names, sizes and times."""
        digest = hashlib.blake2b(digest_size=16)
        for name in self._files:
            path, regions = self._folder / name, self._image(name).regions
            with_it = (path, path.with_suffix(".txt"), *([regions] if isinstance(regions, Path) else []))
            digest.update("\0".join([name, *map(_changes, with_it), "\n"]).encode(errors="surrogateescape"))
        return digest.hexdigest()

    @property
    def groups(self) -> list[Group]:
        return [Group("images", len(self._files))]

    def lengths(self, group: int) -> Lengths:
        return uniform_lengths(len(self._files), self._preparing)

    def items(self, group: int, first: int, last: int) -> Iterator[Item]:
        for name in self._files[first:last]:
            key = _stem(name) if self._stems[_stem(name)] == 1 else name
            try:
                words = _words_beside(self._folder / name)
            except Fault as fault:
                yield Item(name, key, "", fault=(fault.member, fault.reason))
                continue
            yield self._preparing.item(name, key, words, self._image(name), name)

    def image(self, name: str) -> Files:
        if name not in self._names:
            raise DataError(f"{self.place}: has no image '{name}', so it is not what was extracted")
        return self._image(self._names[name])

    def photo(self, name: str) -> Path:
        return self.image(name).picture  # type: ignore[return-value]  # a folder holds files

    def _image(self, name: str) -> Files:
        return Files(self._folder / name, self._regions / f"{_stem(name)}.npz" if self._regions else None)


def uniform_lengths(examples: int, preparing: Preparing, text: int = 32) -> Lengths:
    """What a source without an index knows: about so many tokens of a text, the most of an image."""
    regions = getattr(preparing.images, "max_regions", 100)
    image = preparing.image_tokens(regions)
    return Lengths(np.full(examples, text), np.full(examples, image), np.arange(examples))


def _images(folder: Path) -> Iterator[str]:
    for directory, folders, files in os.walk(folder):
        folders.sort()
        for name in files:
            if name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                yield str((Path(directory) / name).relative_to(folder))


def _changes(path: Path) -> str:
    """What is another when a file has changed; the same of all that are not there."""
    try:
        status = path.stat()
    except OSError:
        return "none"
    return f"{status.st_size} {status.st_mtime_ns}"


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _words_beside(image: Path) -> str:
    path = image.with_suffix(".txt")
    if not path.is_file():
        return ""
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise Fault("txt", f"has more than {MAX_TEXT_BYTES} bytes")
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (UnicodeDecodeError, OSError) as error:
        raise Fault("txt", f"cannot be read: {error}") from None
