"""Writing shards: one schema, the same bytes for the same samples, never half a shard under its final name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from vlp.data.arrays import npy_bytes
from vlp.data.imagefile import IMAGE_FORMATS
from vlp.data.manifest import INDEX
from vlp.errors import DataError
from vlp.types import Question, Regions

REPORT = "import_report.json"
SAMPLES_PER_SHARD = 1000
"""About 150 MB of ordinary photos: large enough to stream, small enough to shuffle by shards."""


def safe_key(name: str) -> str:
    """A key from a file's name: no dot (WebDataset ends a key there), no separator, no control character."""
    return "".join("_" if letter in "./\\" or ord(letter) < 32 else letter for letter in name)


def prepare_directory(out: Path, *, overwrite: bool) -> None:
    """Make the directory for new shards.

    Raises:
        DataError: it holds shards and `overwrite` is off, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; --out names the directory for the shards")
    out.mkdir(parents=True, exist_ok=True)
    shards = sorted(out.glob("*.tar"))
    if shards and not overwrite:
        raise DataError(f"{out}: holds shards already ({shards[0].name}, ...); choose another --out or say --overwrite")
    for path in [*shards, out / REPORT]:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / INDEX, ignore_errors=True)


class ShardWriter:
    """Writes samples to `<prefix>-000000.tar`, `<prefix>-000001.tar`, ...

    A shard stands under a hidden name until it is complete. Use as a context manager: an exception leaves the finished
    shards and removes the one in the making.
    """

    def __init__(self, out: Path, samples_per_shard: int = SAMPLES_PER_SHARD, prefix: str = "shard") -> None:
        if samples_per_shard < 1:
            raise DataError(f"samples per shard: {samples_per_shard} is not right, it should be 1 or more")
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.samples_per_shard = samples_per_shard
        self.prefix = prefix
        self.samples = 0
        """Written so far."""
        self.shards = 0
        """Completed so far."""
        self._keys: set[str] = set()
        self._file: BinaryIO | None = None
        self._tar: Any = None

    def write(
        self,
        key: str,
        image: bytes | None,
        image_extension: str,
        regions: Regions | None,
        captions: Sequence[str],
        questions: Sequence[Question] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one sample.

        Args:
            key: unique in its shard, without dots and separators (see `safe_key`).
            image: the bytes of an image file, kept as they are.
            image_extension: `jpg`, `png` or `webp`; not read where there is no image.
            regions: written as raw `.npy` members; features keep their type.
            metadata: further keys of the sample's JSON (`id`, `width`, `height`, ...).
        Raises:
            DataError: a key that cannot be one, or that stands in the shard already.
        """
        if not key or key != safe_key(key) or key.startswith("__"):
            raise DataError(
                f"sample key {key!r}: a key has no dot, no separator and does not start with '__'; rename it"
            )
        if key in self._keys:
            raise DataError(f"sample key {key!r}: stands twice in one shard; give every sample its own key")
        members = {"json": _json(captions, questions, metadata or {})}
        if image is not None:
            if image_extension not in IMAGE_FORMATS.values():
                raise DataError(f"sample {key!r}: image extension {image_extension!r} is not jpg, png or webp")
            members[image_extension] = image
        if regions is not None:
            members |= _region_members(regions)
        self._open().write({"__key__": key, **members})
        self._keys.add(key)
        self.samples += 1
        if len(self._keys) == self.samples_per_shard:
            self._finish()

    def close(self) -> None:
        """Complete the last shard."""
        if self._tar is not None:
            self._finish()

    def abort(self) -> None:
        """Drop the shard in the making."""
        if self._file is not None:
            self._tar.close()
            self._file.close()
            self._partial().unlink(missing_ok=True)
        self._file = self._tar = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _path(self) -> Path:
        return self.out / f"{self.prefix}-{self.shards:06d}.tar"

    def _partial(self) -> Path:
        return self.out / f".{self._path().name}.partial"

    def _open(self) -> Any:
        if self._tar is None:
            from webdataset.writer import TarWriter  # imports torch

            self._file = self._partial().open("wb")
            self._tar = TarWriter(self._file, user="", group="", mtime=0, encoder=False)
        return self._tar

    def _finish(self) -> None:
        assert self._file is not None
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial(), self._path())
        self._file = self._tar = None
        self._keys.clear()
        self.shards += 1


def _json(captions: Sequence[str], questions: Sequence[Question], metadata: Mapping[str, Any]) -> bytes:
    record: dict[str, Any] = {"captions": list(captions)}
    if questions:
        record["questions"] = [
            {"question": question.text, "answers": list(question.answers), "question_id": question.id}
            for question in questions
        ]
    assert not record.keys() & metadata.keys()
    return json.dumps({**metadata, **record}, ensure_ascii=False, sort_keys=True).encode()


def _region_members(regions: Regions) -> dict[str, bytes]:
    arrays = {"features": regions.features_RD, "boxes": regions.boxes_R4.astype(np.float32)}
    if regions.confidence_R is not None:
        arrays["confidence"] = regions.confidence_R
    if regions.class_probs_RC is not None:
        arrays["class_probs"] = regions.class_probs_RC
    return {f"{name}.npy": npy_bytes(array) for name, array in arrays.items()}
