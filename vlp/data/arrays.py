"""Numpy arrays in and out of bytes: no pickle, nothing allocated that the bytes do not hold, same arrays same bytes."""

from __future__ import annotations

import ast
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_ARRAY_BYTES = 1 << 30
"""No array of a sample or of one shard's tables comes near it: 400 regions of 2048 float32 are 3 MB."""

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 4096
_PLAIN_KINDS = "biufSU"
_ZIP_FAULTS = (ValueError, OSError, RuntimeError, KeyError, EOFError, struct.error, zipfile.BadZipFile, zlib.error)


class ArrayFault(ValueError):
    """Bytes that are not the array they claim to be; the message says how, without a place."""


def npy_layout(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """What the head of an `.npy` says: type, shape, whether columns come first, and where the numbers start.

    Raises:
        ArrayFault: not an `.npy`, or one of Python objects or records.
    """
    if head[:6] != _MAGIC or len(head) < 12:
        raise ArrayFault("is not an .npy array")
    if head[6] == 1:
        start = 10
        length = int.from_bytes(head[8:10], "little")
    else:
        start = 12
        length = int.from_bytes(head[8:12], "little")
    if length > _MAX_HEADER or len(head) < start + length:
        raise ArrayFault("has a damaged .npy header")
    dtype, shape, columns_first = _parse_header(head[start : start + length])
    return dtype, shape, columns_first, start + length


@lru_cache(maxsize=4096)  # a shard repeats a few shapes; parsing costs 20 us, four times per sample
def _parse_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    # Not numpy's own parser: on damaged bytes it warns, guesses and raises what it stumbles over.
    try:
        fields = ast.literal_eval(header.decode("latin1").strip())
        description, columns_first, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        dtype = np.dtype(description) if isinstance(description, str) else None
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise ArrayFault("has a damaged .npy header") from error
    if dtype is None or dtype.kind not in _PLAIN_KINDS:
        objects = dtype is not None and dtype.hasobject
        raise ArrayFault(
            "holds pickled Python objects, which are never loaded" if objects else f"holds {description}, no numbers"
        )
    sizes = shape if isinstance(shape, tuple) else (-1,)
    if not isinstance(columns_first, bool) or any(type(size) is not int or size < 0 for size in sizes):
        raise ArrayFault("has a damaged .npy header")
    return dtype, sizes, columns_first


def read_npy(data: bytes) -> NDArray[Any]:
    """The array of an `.npy`, as a read-only view of its bytes.

    Raises:
        ArrayFault: damaged, pickled, or of another length than its header says.
    """
    dtype, shape, columns_first, start = npy_layout(data)
    count = math.prod(shape)
    needed = count * dtype.itemsize
    if start + needed != len(data):
        raise ArrayFault(f"has {len(data) - start} bytes of numbers where {shape} {dtype} needs {needed}")
    if count == 0 or dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(data, dtype=dtype, count=count, offset=start)
    return flat.reshape(shape, order="F" if columns_first else "C")


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as `.npy`.

    Raises:
        ArrayFault: an array of Python objects.
    """
    if array.dtype.hasobject:
        raise ArrayFault("holds Python objects, which are never written")
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)
    return stream.getvalue()


def read_npz(source: bytes | Path, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz`, or those of `names` that it has.

    Raises:
        ArrayFault: damaged, pickled, or unpacking to more than `MAX_ARRAY_BYTES`.
        FileNotFoundError: the file is not there.
    """
    if isinstance(source, Path) and source.stat().st_size > MAX_ARRAY_BYTES:
        raise ArrayFault(f"is larger than {MAX_ARRAY_BYTES} bytes")
    data = source if isinstance(source, bytes) else source.read_bytes()
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            wanted = [
                info
                for info in archive.infolist()
                if info.filename.endswith(".npy") and (names is None or info.filename[:-4] in names)
            ]
            if sum(info.file_size for info in wanted) > MAX_ARRAY_BYTES:
                raise ArrayFault(f"unpacks to more than {MAX_ARRAY_BYTES} bytes")
            for info in wanted:
                name = info.filename[:-4]
                try:
                    arrays[name] = read_npy(archive.read(info))
                except ArrayFault as fault:
                    raise ArrayFault(f"'{name}' {fault}") from None
    except ArrayFault:
        raise
    except _ZIP_FAULTS as error:
        raise ArrayFault("is not a whole .npz archive") from error
    return arrays


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an uncompressed `.npz`, whole or not at all; the bytes depend on the arrays alone."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), npy_bytes(array))
    write_whole(path, stream.getvalue())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it, so that no reader ever sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
