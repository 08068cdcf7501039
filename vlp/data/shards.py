"""Reading samples out of tar shards by `os.pread`: any sample of any shard, in any order, from any process."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

from numpy.typing import NDArray

from vlp.data.arrays import ArrayFault, read_npy
from vlp.data.imagefile import IMAGE_EXTENSIONS
from vlp.data.index import Index
from vlp.data.samples import REGION_ARRAYS, Fault, SampleTexts, check_texts, checked_regions, parse_texts, regions_npz
from vlp.data.tables import ShardTable
from vlp.errors import DataError
from vlp.types import Regions, Sample

_OPEN_FILES = 64
"""Per process; the usual limit is 1024 and several loaders may live in one."""


class BadSample(DataError):
    """A sample that cannot be used. Loaders replace it; its attributes go into the quarantine's record."""

    def __init__(self, shard: str, key: str, member: str, reason: str) -> None:
        super().__init__(f"{shard}: sample '{key}': {member} {reason}")
        self.shard = shard
        self.key = key
        self.member = member
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str, str, str]]:
        return BadSample, (self.shard, self.key, self.member, self.reason)


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
            image_bytes = self._image(table, shard, row) if image else None
            seen = self._regions(table, shard, row) if regions and table.regions_S[row] else None
            words = self.texts(shard, row) if texts else SampleTexts()
            check_texts(words)
            if texts and (len(words.captions), len(words.questions)) != (table.captions_S[row], table.questions_S[row]):
                raise Fault("json", "has another number of texts than the index says")
        except Fault as fault:
            raise BadSample(
                self.index.manifest.shards[shard].name, table.keys[row], fault.member, fault.reason
            ) from None
        return Sample(table.keys[row], image_bytes, seen, words.captions, words.questions)

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
            Fault: the shard is gone or ends too early.
        """
        column = table.members.get(extension)
        if column is None or column[1][row] < 0:
            return None
        offset, size = int(column[0][row]), int(column[1][row])
        try:
            data = os.pread(self._file(shard), size, offset)
        except OSError as error:
            raise Fault(extension, f"cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise Fault(extension, f"has {len(data)} of {size} bytes: the shard is truncated")
        return data

    def close(self) -> None:
        """Close the open shards; reading opens them again."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _image(self, table: ShardTable, shard: int, row: int) -> bytes | None:
        for extension in IMAGE_EXTENSIONS:
            data = self.member(table, shard, row, extension)
            if data is not None:
                return data
        return None

    def _regions(self, table: ShardTable, shard: int, row: int) -> Regions:
        regions = checked_regions(self._arrays(table, shard, row))
        manifest, probs_RC = self.index.manifest, regions.class_probs_RC
        if len(regions) != table.regions_S[row] or regions.features_RD.shape[1] != manifest.feature_width:
            raise Fault("features", f"has shape {list(regions.features_RD.shape)}, not the one that the index has")
        if probs_RC is not None and probs_RC.shape[1] != manifest.class_count:
            raise Fault("class_probs", f"has {probs_RC.shape[1]} classes where the index has {manifest.class_count}")
        return regions

    def _arrays(self, table: ShardTable, shard: int, row: int) -> dict[str, NDArray[Any]]:
        arrays = {}
        for name in REGION_ARRAYS:
            data = self.member(table, shard, row, f"{name}.npy")
            if data is not None:
                try:
                    arrays[name] = read_npy(data)
                except ArrayFault as fault:
                    raise Fault(f"{name}.npy", str(fault)) from None
        packed = self.member(table, shard, row, "regions.npz") if not arrays else None
        if packed is not None:
            arrays = regions_npz(packed)
        return arrays

    def _file(self, shard: int) -> int:
        if self._process != os.getpid():
            # A forked child: its copies of the parent's descriptors work, but their number would not be bounded here.
            self.close()
            self._process = os.getpid()
        descriptor = self._files.get(shard)
        if descriptor is None:
            descriptor = self._files[shard] = os.open(self.index.path(shard), os.O_RDONLY)
            if len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        else:
            self._files.move_to_end(shard)
        return descriptor

    def __getstate__(self) -> dict[str, object]:
        return {"index": self.index, "_files": OrderedDict(), "_process": -1}

    def __del__(self) -> None:
        self.close()
