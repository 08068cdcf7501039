"""An index built of a folder of features: each image and each text once, in one reading.

The features' vectors are copied to flat files first, so that they are read once whatever their format, and mapped.

Shape suffixes: N vectors, Q queries, D numbers of a vector.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import write_whole
from vlp.data.build import checksum_of
from vlp.errors import ConfigError, DataError
from vlp.features.manifest import Manifest
from vlp.features.reading import Features, Row
from vlp.search.facts import FACTS, STRINGS, Facts, Model, Side, Source, head_checksum, own_files, place_of
from vlp.search.strings import StringsWriter
from vlp.search.vectors import KINDS, Kind, build, faiss, recall, save
from vlp.types import Stream

_PARTIAL = ".partial"
_CHUNK = 8192
_QUERIES = 500
"""That recall is measured with."""
_LENGTH = 0.02
"""That a vector's length may differ from 1: in bf16 it does by some thousandths."""


def build_index(features: Features, out: Path, kind: Kind = "exact") -> Facts:
    """Write the index of the vectors in a folder of features; returns what it says of itself.

    An image of several texts is there once, and so is a text of several images. Recall is measured with vectors of the
    other side, as they will be asked. In `out` nothing but an index's own files is touched.

    Raises:
        ConfigError: the kind is not known, there are no vectors, or `out` holds something else.
        DataError: the features are damaged, or there is nothing to search in.
    """
    if kind not in KINDS:
        raise ConfigError(f"--kind: '{kind}' is not known, it should be one of {', '.join(KINDS)}")
    sides: list[Stream] = [side for side in ("image", "text") if f"{side}.vector" in features.names]
    if not sides:
        raise ConfigError(
            f"{features.folder}: has no vectors to search in; extract image.vector or text.vector (or both)"
        )
    faiss()  # before the features are read for nothing
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if found and FACTS not in found and not found <= {*own_files(), _PARTIAL}:
        raise ConfigError(f"--out: {out} is not empty and holds no index; take another folder")
    new, making = not out.exists(), out / _PARTIAL
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        facts = _built(features, making, out, sides, kind)
        _put(making, out, facts)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        if new and not any(out.iterdir()):
            out.rmdir()
    return facts


def _built(features: Features, folder: Path, out: Path, sides: list[Stream], kind: Kind) -> Facts:
    manifest = features.manifest
    width = manifest.widths[f"{sides[0]}.vector"]
    gathered = {side: _Gathered(folder, side, width) for side in sides}
    left_out = 0
    for row in features:
        sound = [each.add(row) for each in gathered.values()]
        left_out += not all(sound)
    for each in gathered.values():
        each.close()
    filled = {side: each for side, each in gathered.items() if each.count}
    if not filled:
        reason = f"no row that can be used ({left_out} have no vectors of length 1)" if left_out else "no row"
        raise DataError(f"{features.folder}: holds {reason}, so there is nothing to search in")
    _check_texts_differ(features, filled.get("text"))
    about = {}
    for side, each in filled.items():
        other = filled.get("text" if side == "image" else "image", each)
        index = build(kind, width, each.count, each.chunks)
        path = folder / f"{side}.faiss"
        save(index, path)
        found = round(recall(index, each.chunks, other.some(_QUERIES)), 4)
        checksum = head_checksum(path, each.count, width)
        about[side] = Side(count=each.count, recall=found, bytes=path.stat().st_size, checksum=checksum)
    files = {name: checksum_of(folder / name) for name in own_files(list(about))[1:]}
    facts = Facts(kind=kind, width=width, left_out=left_out, sides=about, files=files, **_origin(manifest, out))
    write_whole(folder / FACTS, facts.model_dump_json(indent=1).encode() + b"\n")
    return facts


def _check_texts_differ(features: Features, texts: _Gathered | None) -> None:
    """Refuse vectors that are one for all texts: a model whose blocks look at no text by itself made them."""
    if texts is None or texts.count == 1:
        return
    (first_D,) = texts.some(1)
    if all(np.allclose(part_ND, first_D, atol=1e-5) for part_ND in texts.chunks()):
        raise DataError(
            f"{features.folder}: text.vector is the same for every text, so the model tells none from another; train "
            "one with task.contrast.text=mean or with blocks of the text alone"
        )


def _origin(manifest: Manifest, out: Path) -> dict[str, Model | Source]:
    folder = out.absolute()
    regions = manifest.options.get("regions")
    source = Source(
        kind=manifest.source_kind,
        place=place_of(manifest.source, folder),
        fingerprint=manifest.data,
        texts=manifest.texts,
        images=place_of(manifest.images, folder) if manifest.images else None,
        columns=manifest.options.get("columns"),
        regions=place_of(regions, folder) if regions else None,
    )
    model = Model(place=place_of(manifest.model.name, folder), fingerprint=manifest.model.fingerprint)
    return {"model": model, "source": source}


def _put(making: Path, out: Path, facts: Facts) -> None:
    """Put the files in their place. `search.json` goes first and comes last: no index is there that is half another."""
    (out / FACTS).unlink(missing_ok=True)
    names = own_files(list(facts.sides))
    for name in set(own_files()) - set(names):
        (out / name).unlink(missing_ok=True)
    for name in names[1:]:
        os.replace(making / name, out / name)
    os.replace(making / FACTS, out / FACTS)


class _Gathered:
    """The entries of one side: texts on the disk as the index has them, vectors in a flat file."""

    def __init__(self, folder: Path, side: Stream, width: int) -> None:
        self.count = 0
        self._side, self._width, self._path = side, width, folder / f"{side}.vectors"
        self._file = self._path.open("wb")
        self._texts = {name: StringsWriter(folder / f"{side}.{name}") for name in STRINGS}
        self._seen: set[bytes] = set()

    def add(self, row: Row) -> bool:
        """Take a row's image or text, if it has one that is new; false where its vector cannot be used."""
        what = row.image if self._side == "image" else row.words.strip()
        digest = hashlib.blake2b(what.encode("utf-8", "backslashreplace"), digest_size=12).digest()
        if not what or digest in self._seen:
            return True
        vector_D = np.asarray(row.arrays[f"{self._side}.vector"], np.float64)
        length = float(np.sqrt(vector_D @ vector_D))
        if not abs(length - 1) <= _LENGTH:  # nor one that is no number
            return False
        self._seen.add(digest)
        self._file.write((vector_D / length).astype(np.float32).tobytes())
        for name, text in zip(STRINGS, (row.id, row.image, row.words), strict=True):
            self._texts[name].add(text)
        self.count += 1
        return True

    def close(self) -> None:
        self._file.close()
        for texts in self._texts.values():
            texts.close()
        self._seen.clear()

    def chunks(self) -> Iterator[NDArray[np.float32]]:
        """All vectors, some thousand at a time."""
        vectors_ND = self._mapped()
        for start in range(0, self.count, _CHUNK):
            yield np.array(vectors_ND[start : start + _CHUNK])

    def some(self, most: int) -> NDArray[np.float32]:
        """Some of the vectors, evenly over all."""
        return np.array(self._mapped()[:: -(-self.count // most)])

    def _mapped(self) -> NDArray[np.float32]:
        return np.memmap(self._path, np.float32, "r", shape=(self.count, self._width))
