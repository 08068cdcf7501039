"""Writing shards: one schema, the same bytes for the same samples, never half a shard under its final name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np

from vlp.data.arrays import npy_bytes
from vlp.data.imagefile import IMAGE_FORMATS
from vlp.data.manifest import INDEX
from vlp.data.samples import MAX_TEXT_BYTES
from vlp.errors import DataError
from vlp.types import Question, Regions

REPORT = "import_report.json"
PARTIAL = ".partial"
SAMPLES_PER_SHARD = 1000
"""About 150 MB of ordinary photos: large enough to stream, small enough to shuffle by shards."""


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:06d}.tar"


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
    if not overwrite:
        refuse_shards(out)
    clear_directory(out)


def refuse_shards(out: Path) -> None:
    """Raises DataError if the directory holds shards."""
    shards = sorted(out.glob("*.tar"))
    if shards:
        raise DataError(f"{out}: holds shards already ({shards[0].name}, ...); choose another --out or say --overwrite")


def clear_directory(out: Path) -> None:
    """Remove shards, index and report; what else is there stays."""
    for path in [*out.glob("*.tar"), out / REPORT]:
        path.unlink(missing_ok=True)
    remove_partials(out)
    shutil.rmtree(out / INDEX, ignore_errors=True)


def remove_partials(out: Path) -> None:
    """Remove what a killed process left half-written."""
    for folder in (out, out / INDEX):
        for path in folder.glob(f".*{PARTIAL}"):
            path.unlink(missing_ok=True)


class Unwritable(DataError):
    """A sample whose texts no reader would take; the shard in the making is as it was."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a complete shard is known by."""

    bytes: int
    mtime_ns: int
    checksum: str
    """As `vlp.data.build.checksum_of`."""


class ShardFile:
    """One shard in the making: a tar under a hidden name until `publish`.

    The tar is what webdataset's own writer makes of the same members, byte by byte; that one imports torch, which takes
    three seconds and 600 MB of every process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: set[str] = set()
        # Its own name per process: of a killed import a process may still be about to move its file.
        self._partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
        self._file = _HashedFile(self._partial.open("wb"))
        self._tar = tarfile.open(  # noqa: SIM115
            fileobj=cast(Any, self._file), mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8"
        )

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
            Unwritable: half a surrogate pair in a text, or more text than a reader takes.
        """
        if not key or key != safe_key(key) or key.startswith("__"):
            raise DataError(
                f"sample key {key!r}: a key has no dot, no separator and does not start with '__'; rename it"
            )
        members = {"json": _json(captions, questions, metadata or {})}
        if image is not None:
            if image_extension not in IMAGE_FORMATS.values():
                raise DataError(f"sample {key!r}: image extension {image_extension!r} is not jpg, png or webp")
            members[image_extension] = image
        self.copy(key, members, regions)

    def copy(self, key: str, members: Mapping[str, bytes], regions: Regions | None = None) -> None:
        """Write one sample of members that another shard has, with these regions.

        Args:
            key: as it stands in that shard.
            members: by extension; their bytes are kept.
        Raises:
            DataError: the key stands in the shard already.
        """
        if key in self.keys:
            raise DataError(f"sample key {key!r}: stands twice in one shard; give every sample its own key")
        all_members = {**members, **(_region_members(regions) if regions is not None else {})}
        for extension in sorted(all_members):
            self._add(f"{key}.{extension}", all_members[extension])
        self.keys.add(key)

    def seal(self) -> Sealed:
        """End the tar and see it on the disk; it still stands under its hidden name."""
        self._tar.close()
        return self._file.seal()

    def publish(self) -> None:
        """Give the sealed tar its name."""
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode, member.mtime = len(data), 0o444, 0
        self._tar.addfile(member, io.BytesIO(data))


class _HashedFile:
    """A file that is written from start to end, and hashed on the way: reading it again would cost as much."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=16)

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seal(self) -> Sealed:
        self._file.flush()
        os.fsync(self._file.fileno())
        state = os.fstat(self._file.fileno())
        self._file.close()
        return Sealed(state.st_size, state.st_mtime_ns, self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()


class ShardWriter:
    """Writes samples to `shard-000000.tar`, `shard-000001.tar`, ..., each complete before it has its name.

    Use as a context manager: an exception leaves the finished shards and removes the one in the making.
    """

    def __init__(self, out: Path, samples_per_shard: int = SAMPLES_PER_SHARD) -> None:
        if samples_per_shard < 1:
            raise DataError(f"samples per shard: {samples_per_shard} is not right, it should be 1 or more")
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.samples_per_shard = samples_per_shard
        self.samples = 0
        """Written so far."""
        self.shards = 0
        """Completed so far."""
        self._shard: ShardFile | None = None

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
        """Write one sample; arguments and errors are those of `ShardFile.write`."""
        if self._shard is None:
            self._shard = ShardFile(self.out / shard_name(self.shards))
        self._shard.write(key, image, image_extension, regions, captions, questions, metadata)
        self.samples += 1
        if len(self._shard.keys) == self.samples_per_shard:
            self.close()

    def close(self) -> None:
        """Complete the last shard."""
        if self._shard is None:
            return
        if self._shard.keys:
            self._shard.seal()
            self._shard.publish()
            self.shards += 1
        else:
            self._shard.discard()
        self._shard = None

    def abort(self) -> None:
        """Drop the shard in the making."""
        if self._shard is not None:
            self._shard.discard()
        self._shard = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _json(captions: Sequence[str], questions: Sequence[Question], metadata: Mapping[str, Any]) -> bytes:
    record: dict[str, Any] = {"captions": list(captions)}
    if questions:
        record["questions"] = [_question(question) for question in questions]
    assert not record.keys() & metadata.keys()
    try:
        made = json.dumps({**metadata, **record}, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError:
        raise Unwritable("text with half a surrogate pair, which is no character") from None
    if len(made) > MAX_TEXT_BYTES:
        raise Unwritable(f"more than {MAX_TEXT_BYTES >> 20} MiB of texts for one image")
    return made


def _question(question: Question) -> dict[str, Any]:
    record = {"question": question.text, "answers": list(question.answers), "question_id": question.id}
    return {**record, "types": dict(question.types)} if question.types else record


def _region_members(regions: Regions) -> dict[str, bytes]:
    arrays = {
        "features": regions.features_RD,
        "boxes": regions.boxes_R4.astype(np.float32),
        "confidence": regions.confidence_R,
        "class_probs": regions.class_probs_RC,
        "classes": regions.classes_R,
        "attributes": regions.attributes_R,
        "attribute_confidence": regions.attribute_confidence_R,
    }
    return {f"{name}.npy": npy_bytes(array) for name, array in arrays.items() if array is not None}
