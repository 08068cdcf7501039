"""Reading samples out of tar shards by `os.pread`: any sample of any shard, in any order, from any process."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import ArrayFault, npy_layout
from vlp.data.imagefile import IMAGE_EXTENSIONS
from vlp.data.index import Index
from vlp.data.samples import (
    MEMBER_LIMITS,
    REGION_EXTENSIONS,
    Fault,
    SampleTexts,
    ShardFault,
    check_features,
    check_texts,
    checked_regions,
    parse_texts,
    region_arrays,
)
from vlp.data.tables import ShardTable
from vlp.errors import DataError
from vlp.types import Regions, Sample

_GAP = 4096
"""Bytes between members that are read along; a tar's headers and padding are 1 KiB at most."""
_HEAD = 128
"""Bytes that hold the head of an `.npy` of two dimensions."""
_OPEN_FILES = 64
"""Per process; the usual limit is 1024 and several loaders may live in one."""


class BadSample(DataError):
    """A sample that cannot be used. Loaders replace it; its attributes go into the quarantine's record."""

    def __init__(self, shard: str, key: str, member: str, reason: str, whole_shard: bool = False) -> None:
        super().__init__(f"{shard}: sample '{key}': {member} {reason}")
        self.shard = shard
        self.key = key
        self.member = member
        self.reason = reason
        self.whole_shard = whole_shard
        """No other sample of the shard can be read either."""

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str, str, str, bool]]:
        return BadSample, (self.shard, self.key, self.member, self.reason, self.whole_shard)


class ShardReader:
    """Reads the samples of an index. Descriptors belong to one process; a fork or a pickled copy opens its own."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._files: OrderedDict[int, int] = OrderedDict()
        self._process = os.getpid()

    def read(self, shard: int, row: int, *, image: bool, regions: bool, texts: bool) -> Sample:
        """One sample, with the members that are asked for; texts are stripped and in NFC.

        Args:
            shard: number of the shard in the manifest.
            row: row of the sample in the shard's table.
        Raises:
            BadSample: bytes missing, JSON not of the schema, an empty text, region arrays that are not what they
                should be, or neither image nor regions where the dataset is not text only.
        """
        table = self.index.table(shard)
        try:
            if not (table.has_image_S[row] or table.regions_S[row] or self.index.manifest.text_only):
                raise Fault("sample", "has neither an image nor regions")
            regions = regions and bool(table.regions_S[row])
            found = self._members(table, shard, row, _wanted(image, regions, texts))
            image_bytes = next((found[extension] for extension in IMAGE_EXTENSIONS if extension in found), None)
            seen = self._regions(table, row, found.get) if regions else None
            words = parse_texts(found.get("json"), found.get("txt")) if texts else SampleTexts()
            check_texts(words)
            if texts and (len(words.captions), len(words.questions)) != (table.captions_S[row], table.questions_S[row]):
                raise Fault("json", "has another number of texts than the index says")
        except Fault as fault:
            name, whole_shard = self.index.manifest.shards[shard].name, isinstance(fault, ShardFault)
            raise BadSample(name, table.keys[row], fault.member, fault.reason, whole_shard) from None
        size = int(table.width_S[row]), int(table.height_S[row])
        return Sample(table.keys[row], image_bytes, seen, words.captions, words.questions, *size)

    def features(self, shard: int, row: int, first: int, count: int) -> NDArray[np.floating[Any]]:
        """Features of the regions `first` to `first + count - 1` of a sample, [count, D]; nothing else is read of it
        where they lie in a member of their own.

        Raises:
            BadSample: they cannot be read.
        """
        table = self.index.table(shard)
        try:
            array_KD = self._feature_rows(table, shard, row, first, count)
            if array_KD is None:
                regions = self._regions(table, row, partial(self.member, table, shard, row))
                array_KD = regions.features_RD[first : first + count]
            check_features(array_KD)
        except Fault as fault:
            name, whole_shard = self.index.manifest.shards[shard].name, isinstance(fault, ShardFault)
            raise BadSample(name, table.keys[row], fault.member, fault.reason, whole_shard) from None
        return array_KD

    def _feature_rows(
        self, table: ShardTable, shard: int, row: int, first: int, count: int
    ) -> NDArray[np.floating[Any]] | None:
        """Rows of `features.npy` by their places in the file; None where they cannot be told from its head."""
        column = table.members.get("features.npy")
        if column is None or (size := column[1].item(row)) < 0:
            return None
        offset = column[0].item(row)
        head = self._together(shard, min(size, _HEAD), offset)
        try:
            dtype, shape, columns_first, start = npy_layout(head or b"")
        except ArrayFault:
            return None
        if columns_first or shape != (table.regions_S[row], self.index.manifest.feature_width) or dtype.kind != "f":
            return None
        width = shape[1] * dtype.itemsize
        data = self._together(shard, count * width, offset + start + first * width)
        if start + shape[0] * width != size or data is None or len(data) != count * width:
            return None
        return np.frombuffer(data, dtype).reshape(count, shape[1])

    def texts(self, shard: int, row: int) -> SampleTexts:
        """The texts of a sample, blank ones included, and its metadata.

        Raises:
            Fault: bytes missing, or JSON not of the schema.
        """
        table = self.index.table(shard)
        return parse_texts(self.member(table, shard, row, "json"), self.member(table, shard, row, "txt"))

    def member(self, table: ShardTable, shard: int, row: int, extension: str) -> bytes | None:
        """The bytes of one member; None where the sample has none.

        Raises:
            Fault: the shard ends too early, or the member is larger than any may be.
            ShardFault: the shard cannot be opened.
        """
        column = table.members.get(extension)
        if column is None or column[1][row] < 0:
            return None
        offset, size = int(column[0][row]), int(column[1][row])
        if size > MEMBER_LIMITS[extension]:
            raise Fault(extension, f"has {size} bytes, more than {MEMBER_LIMITS[extension]}")
        try:
            file = self._file(shard)
        except OSError as error:
            raise ShardFault(extension, f"cannot be read: {error.strerror}") from None
        try:
            data = self._pread(shard, file, size, offset)
        except OSError as error:
            raise Fault(extension, f"cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise Fault(extension, f"has {len(data)} of {size} bytes: the shard is truncated")
        return data

    def _pread(self, shard: int, file: int, size: int, offset: int) -> bytes:
        data = self.index.pread(file, size, offset)
        while data is None:
            os.close(self._files.pop(shard))
            data = self.index.pread(self._file(shard), size, offset)
        return data

    def close(self) -> None:
        """Close the open shards; reading opens them again."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _members(self, table: ShardTable, shard: int, row: int, extensions: frozenset[str]) -> dict[str, bytes]:
        """The bytes of those of the members that the sample has, in one read where they lie side by side.

        Raises:
            Fault: as `member` does.
        """
        places: list[tuple[str, int, int]] = []
        start, end, total, within = 1 << 62, 0, 0, True
        for extension, (offset_S, size_S) in table.members.items():
            if extension not in extensions or (size := size_S.item(row)) < 0:
                continue
            offset = offset_S.item(row)
            places.append((extension, offset, size))
            start = offset if offset < start else start
            end = offset + size if offset + size > end else end
            total += size
            within = within and size <= MEMBER_LIMITS[extension]
        if len(places) > 1 and within and end - start <= total + _GAP * len(places):
            data = self._together(shard, end - start, start)
            if data is not None and len(data) == end - start:
                return {name: data[offset - start : offset - start + size] for name, offset, size in places}
        # One by one, also to tell which of them is at fault.
        found = {extension: self.member(table, shard, row, extension) for extension, _, _ in places}
        return {extension: data for extension, data in found.items() if data is not None}

    def _together(self, shard: int, size: int, offset: int) -> bytes | None:
        try:
            return self._pread(shard, self._file(shard), size, offset)
        except OSError:
            return None

    def _regions(self, table: ShardTable, row: int, read: Callable[[str], bytes | None]) -> Regions:
        regions = checked_regions(region_arrays(read))
        manifest, probs_RC = self.index.manifest, regions.class_probs_RC
        if len(regions) != table.regions_S[row] or regions.features_RD.shape[1] != manifest.feature_width:
            raise Fault("features", f"has shape {list(regions.features_RD.shape)}, not the one that the index has")
        if probs_RC is not None and probs_RC.shape[1] != manifest.class_count:
            raise Fault("class_probs", f"has {probs_RC.shape[1]} classes where the index has {manifest.class_count}")
        _check_ids("classes", regions.classes_R, manifest.class_ids)
        _check_ids("attributes", regions.attributes_R, manifest.attribute_ids)
        return regions

    def _file(self, shard: int) -> int:
        if self._process != os.getpid():
            # A forked child: its copies of the parent's descriptors work, but their number would not be bounded here.
            self.close()
            self._process = os.getpid()
        descriptor = self._files.get(shard)
        if descriptor is None:
            descriptor = self._files[shard] = self.index.open_shard(shard)
            if len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        else:
            self._files.move_to_end(shard)
        return descriptor

    def __getstate__(self) -> dict[str, object]:
        return {"index": self.index, "_files": OrderedDict(), "_process": -1}

    def __del__(self) -> None:
        self.close()


@lru_cache
def _wanted(image: bool, regions: bool, texts: bool) -> frozenset[str]:
    """The members that may hold what is asked for."""
    arrays = (*REGION_EXTENSIONS, "regions.npz") if regions else ()
    return frozenset((*(IMAGE_EXTENSIONS if image else ()), *arrays, *(("json", "txt") if texts else ())))


def _check_ids(name: str, ids_R: NDArray[Any] | None, known: int | None) -> None:
    if ids_R is not None and ids_R.size and ids_R.max() >= (known or 0):
        raise Fault(name, f"has the number {ids_R.max()} where the index has {known or 0} of them")
