"""From a tar to its table: members grouped to samples, each looked at just enough to count and size it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlp.data import tar
from vlp.data.arrays import ArrayFault, npy_layout, read_npy
from vlp.data.imagefile import IMAGE_EXTENSIONS, ImageFault, image_size
from vlp.data.samples import (
    EXTENSIONS,
    MEMBER_LIMITS,
    REGION_ARRAYS,
    REGION_IDS,
    Fault,
    check_shapes,
    id_bound,
    parse_texts,
    regions_npz,
)
from vlp.data.tables import ShardTable
from vlp.errors import DataError

Places = dict[str, tuple[int, int]]
"""Extension -> offset and size of one sample's members."""

Refuse = Callable[[str, str], object]
"""Called with the key of a sample whose members break a rule, and with what is wrong."""

_HEAD = 1 << 16
"""Bytes of an image read for its size; a JPEG whose metadata are longer is read whole."""


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
    ids: dict[str, int] = field(default_factory=dict)
    """Per array of numbers of classes, its largest plus 1."""


def scan_shard(path: Path, *, text_only: bool = False) -> ShardTable:
    """The table of a shard, made from its tar.

    Args:
        text_only: take samples that have neither an image nor regions; else they are counted and left out (some
            downloaders leave the texts of images that they did not get).
    Raises:
        DataError: a sample breaks the schema, or widths are mixed; the message names shard, key and member.
        TarFault: the tar is damaged.
        OSError: the tar cannot be read.
    """

    def refuse(key: str, reason: str) -> None:
        raise DataError(f"{path}: {reason}")

    samples = grouped(tar.members(path), refuse)
    rows: dict[str, _Row] = {}
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for key, places in samples.items():
            try:
                row = _look(descriptor, places)
            except Fault as fault:
                raise DataError(f"{path}: sample '{key}': {fault}; mend the sample or leave it out") from None
            if text_only or row.regions or _has_image(places):
                rows[key] = row
    finally:
        os.close(descriptor)
    left_out = len(samples) - len(rows)
    samples = {key: samples[key] for key in rows}
    return ShardTable(
        keys=tuple(rows),
        members={extension: _column(samples, extension) for extension in EXTENSIONS if _has(samples, extension)},
        captions_S=np.array([row.captions for row in rows.values()], np.int32),
        questions_S=np.array([row.questions for row in rows.values()], np.int32),
        regions_S=np.array([row.regions for row in rows.values()], np.int32),
        has_image_S=np.array([_has_image(places) for places in samples.values()], np.bool_),
        width_S=np.array([row.width for row in rows.values()], np.int32),
        height_S=np.array([row.height for row in rows.values()], np.int32),
        feature_width=_common(path, tuple(rows), [row.feature_width for row in rows.values()], "region features"),
        class_count=_common(path, tuple(rows), [row.class_count for row in rows.values()], "class probabilities"),
        class_ids=max((row.ids.get("classes", 0) for row in rows.values()), default=0),
        attribute_ids=max((row.ids.get("attributes", 0) for row in rows.values()), default=0),
        left_out=left_out,
    )


def grouped(members: Iterable[tar.Member], refuse: Refuse) -> dict[str, Places]:
    """The known members of each sample. A key ends at the first dot of the base name, as WebDataset has it.

    If `refuse` returns, the member is left out.
    """
    samples: dict[str, Places] = {}
    foreign: dict[str, set[str]] = {}
    for name, offset, size in members:
        key, extension = key_and_extension(name)
        if not key or not extension:
            continue
        if extension not in MEMBER_LIMITS:
            if "." in extension:
                foreign.setdefault(key, set()).add(extension)
            continue
        places = samples.setdefault(key, {})
        if extension in places:
            refuse(key, f"member '{key}.{extension}' stands twice; keys must be unique in a shard")
        elif size > MEMBER_LIMITS[extension]:
            refuse(key, f"member '{name}' has {size} bytes, more than {MEMBER_LIMITS[extension]}: it is refused")
        else:
            places[extension] = offset, size
    for key, places in samples.items():
        images = [extension for extension in IMAGE_EXTENSIONS if extension in places]
        if len(images) > 1:
            refuse(key, f"sample '{key}' has two images ({', '.join(images)}); keep one")
    for key, extensions in foreign.items():
        _refuse_dotted_keys(key, extensions, samples.get(key, {}), refuse)
    return samples


def key_and_extension(name: str) -> tuple[str, str]:
    """The sample that a member belongs to, and which of its members it is; blank for one that belongs to none."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return "", ""  # dot files, WebDataset's own notes
    return f"{folder}{slash}{stem}", extension.lower()


def _refuse_dotted_keys(key: str, extensions: set[str], places: Places, refuse: Refuse) -> None:
    """`x.y.jpg` and `x.z.jpg` would be one sample `x`; `x.mask.png` beside `x.jpg` is an extra that is left alone."""
    inner: dict[str, list[str]] = {}
    for extension in sorted(extensions):
        known = next((name for name in EXTENSIONS if extension.endswith(f".{name}")), None)
        if known is not None:
            inner.setdefault(extension.removesuffix(f".{known}"), []).append(known)
    for stem, known_ones in inner.items():
        if not places or len(known_ones) > 1:
            refuse(
                key,
                f"member '{key}.{stem}.{known_ones[0]}' has a dot in its key, but a key ends at the first dot, "
                f"so samples would be merged under '{key}'; write the shard again with keys without dots",
            )


def _has_image(places: Places) -> bool:
    return any(extension in places for extension in IMAGE_EXTENSIONS)


def _has(samples: Mapping[str, Places], extension: str) -> bool:
    return any(extension in places for places in samples.values())


def _column(samples: Mapping[str, Places], extension: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    column = np.array([places.get(extension, (0, -1)) for places in samples.values()], np.int64)
    return np.ascontiguousarray(column[:, 0]), np.ascontiguousarray(column[:, 1])


def _look(descriptor: int, places: Places) -> _Row:
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
    shapes, ids = {}, {}
    for name in REGION_ARRAYS:
        data = read(f"{name}.npy", None if name in REGION_IDS else _HEAD)
        if data is not None:
            try:
                shapes[name] = npy_layout(data)[1]
                if name in REGION_IDS:
                    ids[name] = read_npy(data)
            except ArrayFault as fault:
                raise Fault(f"{name}.npy", str(fault)) from None
    packed = read("regions.npz") if not shapes else None
    if packed is not None:
        arrays = regions_npz(packed)
        shapes = {name: array.shape for name, array in arrays.items()}
        ids = {name: arrays[name] for name in REGION_IDS if name in arrays}
    if shapes:
        row.regions, row.feature_width, row.class_count = check_shapes(shapes)
        row.ids = {name: id_bound(name, array) for name, array in ids.items()}
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
