"""From a tar to its table: members grouped to samples, each looked at just enough to count and size it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp.data import tar
from vlp.data.arrays import MAX_ARRAY_BYTES, ArrayFault, npy_layout
from vlp.data.imagefile import IMAGE_EXTENSIONS, MAX_IMAGE_BYTES, ImageFault, image_size
from vlp.data.samples import EXTENSIONS, MAX_TEXT_BYTES, REGION_ARRAYS, Fault, check_shapes, parse_texts, regions_npz
from vlp.data.tables import ShardTable
from vlp.errors import DataError

_Places = dict[str, tuple[int, int]]
"""Extension -> offset and size of one sample's members."""

_HEAD = 1 << 16
"""Bytes of an image read for its size; a JPEG whose metadata are longer is read whole."""

_LIMITS = dict.fromkeys(EXTENSIONS, MAX_ARRAY_BYTES)
_LIMITS |= dict.fromkeys(IMAGE_EXTENSIONS, MAX_IMAGE_BYTES)
_LIMITS |= {"json": MAX_TEXT_BYTES, "txt": MAX_TEXT_BYTES}


@dataclass(slots=True)
class _Row:
    """What the table says of one sample."""

    captions: int = 0
    questions: int = 0
    regions: int = 0
    width: int = 0
    height: int = 0
    feature_width: int = 0
    class_count: int = 0


def scan_shard(path: Path) -> ShardTable:
    """The table of a shard, made from its tar.

    Raises:
        DataError: a sample breaks the schema, or widths are mixed; the message names shard, key and member.
        TarFault: the tar is damaged.
        OSError: the tar cannot be read.
    """
    samples = _grouped(path)
    rows = []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for key, places in samples.items():
            try:
                rows.append(_look(descriptor, places))
            except Fault as fault:
                raise DataError(f"{path}: sample '{key}': {fault}; mend the sample or leave it out") from None
    finally:
        os.close(descriptor)
    names = tuple(samples)
    return ShardTable(
        keys=names,
        members={extension: _column(samples, extension) for extension in EXTENSIONS if _has(samples, extension)},
        captions_S=np.array([row.captions for row in rows], np.int32),
        questions_S=np.array([row.questions for row in rows], np.int32),
        regions_S=np.array([row.regions for row in rows], np.int32),
        has_image_S=np.array([any(e in places for e in IMAGE_EXTENSIONS) for places in samples.values()], np.bool_),
        width_S=np.array([row.width for row in rows], np.int32),
        height_S=np.array([row.height for row in rows], np.int32),
        feature_width=_common(path, names, [row.feature_width for row in rows], "region features"),
        class_count=_common(path, names, [row.class_count for row in rows], "class probabilities"),
    )


def _grouped(path: Path) -> dict[str, _Places]:
    """The known members of each sample. A key ends at the first dot of the base name, as WebDataset has it."""
    samples: dict[str, _Places] = {}
    foreign: dict[str, set[str]] = {}
    for name, offset, size in tar.members(path):
        folder, slash, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        key, extension = f"{folder}{slash}{stem}", extension.lower()
        if not stem or not dot or (stem.startswith("__") and stem.endswith("__")):
            continue  # dot files, files without an extension, WebDataset's own notes
        if extension not in _LIMITS:
            if "." in extension:
                foreign.setdefault(key, set()).add(extension)
            continue
        places = samples.setdefault(key, {})
        if extension in places:
            raise DataError(f"{path}: member '{key}.{extension}' stands twice; keys must be unique in a shard")
        if size > _LIMITS[extension]:
            raise DataError(f"{path}: member '{name}' has {size} bytes, more than {_LIMITS[extension]}: it is refused")
        places[extension] = offset, size
    for key, places in samples.items():
        images = [extension for extension in IMAGE_EXTENSIONS if extension in places]
        if len(images) > 1:
            raise DataError(f"{path}: sample '{key}' has two images ({', '.join(images)}); keep one")
    for key, extensions in foreign.items():
        _refuse_dotted_keys(path, key, extensions, samples.get(key, {}))
    return samples


def _refuse_dotted_keys(path: Path, key: str, extensions: set[str], places: _Places) -> None:
    """`x.y.jpg` and `x.z.jpg` would be one sample `x`; `x.mask.png` beside `x.jpg` is an extra that is left alone."""
    inner: dict[str, list[str]] = {}
    for extension in sorted(extensions):
        known = next((name for name in EXTENSIONS if extension.endswith(f".{name}")), None)
        if known is not None:
            inner.setdefault(extension.removesuffix(f".{known}"), []).append(known)
    for stem, known_ones in inner.items():
        if not places or len(known_ones) > 1:
            raise DataError(
                f"{path}: member '{key}.{stem}.{known_ones[0]}' has a dot in its key, but a key ends at the first dot, "
                f"so samples would be merged under '{key}'; write the shard again with keys without dots"
            )


def _has(samples: Mapping[str, _Places], extension: str) -> bool:
    return any(extension in places for places in samples.values())


def _column(samples: Mapping[str, _Places], extension: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    column = np.array([places.get(extension, (0, -1)) for places in samples.values()], np.int64)
    return np.ascontiguousarray(column[:, 0]), np.ascontiguousarray(column[:, 1])


def _look(descriptor: int, places: _Places) -> _Row:
    def read(extension: str, limit: int | None = None) -> bytes | None:
        if extension not in places:
            return None
        offset, size = places[extension]
        return os.pread(descriptor, size if limit is None else min(size, limit), offset)

    texts = parse_texts(read("json"), read("txt"))
    row = _Row(len(texts.captions), len(texts.questions), width=texts.width, height=texts.height)
    for extension in IMAGE_EXTENSIONS:
        head = read(extension, _HEAD)
        if head is not None:
            row.width, row.height = _image_size(head) or _image_size(read(extension) or b"") or (0, 0)
    shapes = {}
    for name in REGION_ARRAYS:
        head = read(f"{name}.npy", _HEAD)
        if head is not None:
            try:
                shapes[name] = npy_layout(head)[1]
            except ArrayFault as fault:
                raise Fault(f"{name}.npy", str(fault)) from None
    packed = read("regions.npz") if not shapes else None
    if packed is not None:
        shapes = {name: array.shape for name, array in regions_npz(packed).items()}
    if shapes:
        row.regions, row.feature_width, row.class_count = check_shapes(shapes)
    return row


def _image_size(data: bytes) -> tuple[int, int] | None:
    """None where the header cannot be read: such an image is for the loader to replace and to report."""
    try:
        return image_size(data)
    except ImageFault:
        return None


def _common(path: Path, keys: tuple[str, ...], widths: list[int], what: str) -> int:
    first = next((row for row, width in enumerate(widths) if width), None)
    if first is None:
        return 0
    for key, width in zip(keys, widths, strict=True):
        if width and width != widths[first]:
            raise DataError(
                f"{path}: {what} are {widths[first]} wide in sample '{keys[first]}' but {width} wide in '{key}'; "
                "one directory holds one width"
            )
    return widths[first]
