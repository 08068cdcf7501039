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
_MAX_DIMENSIONS = 32
_MAX_MEMBERS = 4096
_MANY_BYTES = 1 << 20
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
    # Also where one size is 0: numpy refuses to make an empty array whose other sizes are beyond all bounds.
    most = math.prod(max(size, 1) for size in sizes) * max(dtype.itemsize, 1)
    if len(sizes) > _MAX_DIMENSIONS or most > 1 << 60 or (dtype.itemsize == 0 and 0 not in sizes):
        raise ArrayFault("has an .npy header with impossible sizes")
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


def read_npz(
    source: bytes | Path, names: Collection[str] | None = None, limit: int = MAX_ARRAY_BYTES
) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz`, or those of `names` that it has.

    Args:
        limit: most bytes of the file, and of all that is unpacked from it.
    Raises:
        ArrayFault: damaged, pickled, or beyond the limit.
        FileNotFoundError: the file is not there.
    """
    if (source.stat().st_size if isinstance(source, Path) else len(source)) > limit:
        raise ArrayFault(f"is larger than {limit} bytes")
    data = source if isinstance(source, bytes) else source.read_bytes()
    if len(data) > _MANY_BYTES and data.count(b"PK\x01\x02") > _MAX_MEMBERS:
        raise ArrayFault(f"has more than {_MAX_MEMBERS} members")  # zipfile makes an object of each
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            wanted = [
                info
                for info in archive.infolist()
                if info.filename.endswith(".npy") and (names is None or info.filename[:-4] in names)
            ]
            if sum(info.file_size for info in wanted) > limit:
                raise ArrayFault(f"unpacks to more than {limit} bytes")
            for info in wanted:
                name = info.filename[:-4]
                if name in arrays:
                    raise ArrayFault(f"'{name}' stands twice in it")
                try:
                    arrays[name] = read_npy(_unpacked(archive, info))
                except ArrayFault as fault:
                    raise ArrayFault(f"'{name}' {fault}") from None
    except ArrayFault:
        raise
    except _ZIP_FAULTS as error:
        raise ArrayFault("is not a whole .npz archive") from error
    return arrays


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArrayFault("is packed in a way that numpy never writes")  # the others unpack without bounds
    with archive.open(info) as member:
        # A read without a size would unpack all that is there before it is cut to the size that the archive tells.
        data = member.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ArrayFault("is not as long as the archive says")
    return data


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as an uncompressed `.npz`; the bytes depend on the arrays and their order alone."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), npy_bytes(array))
    return stream.getvalue()


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an uncompressed `.npz`, whole or not at all."""
    write_whole(path, npz_bytes(arrays))


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
