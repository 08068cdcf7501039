"""Bottom-up-attention TSV: the format in which Anderson et al. 2018 (arXiv 1707.07998) and others gave out regions.

One line per image, arrays in base64. A table of the lines' places is made once, in one pass over the file; then any
image is read by itself, so a file far larger than memory serves many processes.
"""

from __future__ import annotations

import base64
import binascii
import mmap
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.samples import BOX_TOLERANCE, Fault, checked_regions
from vlp.errors import DataError
from vlp.types import Regions

_LAYOUTS = {
    6: ("id", "width", "height", "count", "boxes", "features"),
    7: ("id", "width", "height", "count", "boxes", "features", "class_probs"),
    10: (
        *("id", "height", "width", "classes", "confidence", "attributes", "attribute_confidence"),
        *("count", "boxes", "features"),
    ),
}
"""Columns by their number: as the detector's authors wrote them, the same with class probabilities, and with the
most likely class and attribute of each box in place of them (Tan & Bansal 2019, arXiv 1908.07490)."""

_CLASSES, _ATTRIBUTES = 1600, 400
"""Of that detector, by its Visual Genome vocabulary; numbers of classes count without the background."""

_MAX_NAME = 1024
_MAX_BOXES = 10_000
_MAX_LINE = 1 << 30
_PROBED = 16
"""Lines that decide whether width or height comes first."""
_COCO = re.compile(r"(?:COCO_[a-z]+\d{4}_)?0*(\d{1,18})", re.IGNORECASE)

Table = dict[str, tuple[int, int]]
"""Image id -> where its line starts, and its length."""


class TsvRegions:
    """Regions of images, from a TSV; boxes are normalised, rows keep their order (which is not by confidence).

    An image is found by its name without extension; COCO's also by their number alone, however it is padded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table, self._repeated = _table(path)
        self._numbers = _numbers(self._table)
        self._file: int | None = None
        first = self._fields(next(iter(self._table)))
        if len(first) not in _LAYOUTS:
            known = ", ".join(map(str, _LAYOUTS))
            raise DataError(
                f"{path}: its first line has {len(first)} columns separated by tabs; "
                f"bottom-up-attention files have {known}"
            )
        self._columns = _LAYOUTS[len(first)]
        if self._sides_are_swapped():
            swap = {"width": "height", "height": "width"}
            self._columns = tuple(swap.get(name, name) for name in self._columns)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def provenance(self) -> dict[str, Any]:
        repeated = {"repeated_ids": self._repeated} if self._repeated else {}
        counts = {"classes": _CLASSES, "attributes": _ATTRIBUTES} if "classes" in self._columns else {}
        return {"from": "tsv", "source": self.path.name, **counts, **repeated}

    def entry(self, image: str) -> str | None:
        name = image.rpartition("/")[2]
        stem = name.rpartition(".")[0] or name
        if stem in self._table:
            return stem
        number = _COCO.fullmatch(stem)
        return self._numbers.get(number[1]) if number else None

    def read(self, image: str) -> Regions | None:
        entry = self.entry(image)
        if entry is None:
            return None
        fields = self._fields(entry)
        if len(fields) != len(self._columns):
            raise Fault("line", f"has {len(fields)} columns, not {len(self._columns)}")
        return _regions(dict(zip(self._columns, fields, strict=True)))

    def _fields(self, entry: str) -> list[bytes]:
        start, length = self._table[entry]
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY)  # a forked child may share it: reads name their place
            line = os.pread(self._file, length, start)
        except OSError as error:
            raise Fault(self.path.name, f"cannot be read: {error.strerror}") from None
        return line.rstrip(b"\r\n").split(b"\t")

    def _sides_are_swapped(self) -> bool:
        """Whether boxes leave the image with the sides as the layout has them, but not with the sides exchanged."""
        swapped = False
        for entry in list(self._table)[:_PROBED]:
            try:
                fields = dict(zip(self._columns, self._fields(entry), strict=False))
                boxes_R4, width, height = _boxes(fields)
            except (Fault, KeyError):
                continue
            right, low = boxes_R4[:, 2].max(), boxes_R4[:, 3].max()
            if _inside(right, width) and _inside(low, height):
                if not (_inside(right, height) and _inside(low, width)):
                    return False
            elif _inside(right, height) and _inside(low, width):
                swapped = True
        return swapped

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if self.__dict__.get("_file") is not None:
            os.close(self.__dict__["_file"])


def _table(path: Path) -> tuple[Table, int]:
    """Where each image's line lies, and how many lines repeat an id (the first of them counts).

    Raises:
        DataError: no line, or one that does not begin with an id.
    """
    table: Table = {}
    repeated = 0
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            if hasattr(view, "madvise"):
                view.madvise(mmap.MADV_SEQUENTIAL)
            start = number = 0
            while start < len(view):
                end = view.find(b"\n", start)
                end, number = (len(view) if end < 0 else end), number + 1
                name = _name(view, start, end)
                if name is None or end - start > _MAX_LINE:
                    raise DataError(f"{path} line {number}: does not begin with an image id and a tab; give a TSV file")
                if name and not (number == 1 and _is_header(view, start, end)):
                    repeated += name in table
                    table.setdefault(name, (start, end - start))
                start = end + 1
    except ValueError:  # mmap takes no empty file
        pass
    if not table:
        raise DataError(f"{path}: holds no line; give a bottom-up-attention TSV")
    return table, repeated


def _name(view: mmap.mmap, start: int, end: int) -> str | None:
    """The id at the beginning of a line; empty for an empty line, None if there is none."""
    if not view[start : min(end, start + 2)].strip():
        return ""
    tab = view.find(b"\t", start, min(end, start + _MAX_NAME))
    try:
        return view[start:tab].decode("utf-8-sig").strip() or None if tab > start else None
    except UnicodeDecodeError:
        return None


def _is_header(view: mmap.mmap, start: int, end: int) -> bool:
    return b"features" in view[start : min(end, start + _MAX_NAME)].split(b"\t")[1:]


def _numbers(table: Table) -> dict[str, str]:
    """Id by COCO's number in it, where only one id has that number."""
    found: dict[str, str] = {}
    several = set()
    for name in table:
        number = _COCO.fullmatch(name)
        if number and found.setdefault(number[1], name) != name:
            several.add(number[1])
    return {number: name for number, name in found.items() if number not in several}


def _regions(fields: dict[str, bytes]) -> Regions | None:
    count = _whole(fields, "count")
    if count == 0:
        return None
    boxes_R4, width, height = _boxes(fields)
    arrays: dict[str, NDArray[Any]] = {
        "features": _array(fields, "features", count, {4: "<f4"}, None),
        "boxes": boxes_R4 / np.array([width, height, width, height]),
    }
    if "class_probs" in fields:
        arrays["class_probs"] = _array(fields, "class_probs", count, {4: "<f4"}, None)
    for name in ("confidence", "attribute_confidence"):
        if name in fields:
            arrays[name] = _array(fields, name, count, {4: "<f4", 8: "<f8"})
    for name in ("classes", "attributes"):
        if name in fields:
            arrays[name] = _array(fields, name, count, {4: "<i4", 8: "<i8"})
    return checked_regions(arrays)


def _boxes(fields: dict[str, bytes]) -> tuple[NDArray[Any], int, int]:
    """Boxes in pixels, width and height."""
    count, width, height = (_whole(fields, name) for name in ("count", "width", "height"))
    if not 0 < count <= _MAX_BOXES or not width or not height:
        raise Fault("line", f"tells of {count} boxes on an image of {width} x {height} pixels")
    return _array(fields, "boxes", count, {16: "<f4", 32: "<f8"}, 4), width, height


def _whole(fields: dict[str, bytes], name: str) -> int:
    text = fields[name].strip()
    if not text.isdigit() or len(text) > 9:
        raise Fault(name, f"is {text[:20]!r}, not a whole number")
    return int(text)


def _array(
    fields: dict[str, bytes], name: str, count: int, types: dict[int, str], columns: int | None = 0
) -> NDArray[Any]:
    """An array of `count` rows; its type is told by the bytes of a row.

    Args:
        types: type of the numbers by the bytes of a row; with free columns, by those of a number.
        columns: 0 for an array of one dimension, None for as many as there are.
    """
    try:
        data = base64.b64decode(fields[name], validate=True)
    except (binascii.Error, ValueError):
        raise Fault(name, "is not base64") from None
    size, rest = divmod(len(data), count)
    if columns is None:
        (number, dtype) = next(iter(types.items()))
        if not rest and size and size % number == 0:
            return np.frombuffer(data, dtype).reshape(count, -1)
    elif not rest and size in types:
        array = np.frombuffer(data, types[size])
        return array.reshape(count, columns) if columns else array
    raise Fault(name, f"has {len(data)} bytes, which are no {count} rows of numbers")


def _inside(most: float, side: int) -> bool:
    return bool(most <= side * (1 + BOX_TOLERANCE))
