"""Shards that attack: what each is made of, and (as a program) what opening them costs."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

GIB = 1 << 30
BLOCK = 512

Members = list[tuple[str, bytes]]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar header that claims so many bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def photo() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "JPEG")
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------------- members


def png(width: int, height: int, extra: bytes = b"", rows: bytes | None = None) -> bytes:
    """A PNG whose header claims a size; `extra` chunks stand before the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = zlib.compress(rows if rows is not None else bytes(100))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(mib: int) -> bytes:
    """A zlib stream that unpacks to so many MiB of zeros: one megabyte's block, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\x9c" + block * mib + b"\x03\x00" + struct.pack(">HH", (mib << 20) % 65521, 1)


def large_png() -> bytes:
    """Within the limit of pixels, all black: 190 KB that unpack to 192 MB."""
    side = 8000
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    pixels = bomb(1 + side * (3 * side + 1) // (1 << 20))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def scans_jpeg() -> bytes:
    """A progressive JPEG of 2000 x 2000 that goes over its pixels 3000 times."""
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + (data[last:-2]) * 3000 + data[-2:]


def huge_jpeg() -> bytes:
    data = bytearray(photo())
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


def large_webp() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (16, 16)).convert("RGB").save(stream, "WEBP", lossless=True)
    data = bytearray(stream.getvalue())
    data[21:25] = struct.pack("<I", 16382 | (16382 << 14))  # the size in a lossless WebP's header
    return bytes(data)


def npy(description: str, body: bytes = b"") -> bytes:
    text = description.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def shaped(shape: str, kind: str = "<f4") -> bytes:
    return npy(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}")


def npz(arrays: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in arrays.items():
            archive.writestr(name, data)
    return stream.getvalue()


def bomb_npz(claimed: int) -> bytes:
    """Unpacks to 2 GB, and claims so many bytes."""
    packed, name = bomb(2048)[2:-4], b"features.npy"
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 8, 0, 33, 0, len(packed), claimed, len(name), 0) + name
    sizes = (len(packed), claimed, len(name), *[0] * 6)
    there = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 8, 0, 33, 0, *sizes)
    there += name
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(there), len(local) + len(packed), 0)
    return local + packed + there + end


def pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, features=np.array([{"a": 1}], object), norm_bb=np.zeros((1, 4), np.float32))
    return stream.getvalue()


# -------------------------------------------------------------------------------------------------------- shards


def of(*members: tuple[str, bytes]) -> Callable[[Path], None]:
    """A tar of these members."""

    def make(path: Path) -> None:
        parts = [header(name, len(data)) + padded(data) for name, data in members]
        path.write_bytes(b"".join(parts) + bytes(2 * BLOCK))

    return make


def image(data: Callable[[], bytes], extension: str = "png") -> Callable[[Path], None]:
    return lambda path: of((f"a.{extension}", data()), ("a.txt", b"words"))(path)


def regions(data: Callable[[], bytes], extension: str = "regions.npz") -> Callable[[Path], None]:
    return lambda path: of((f"a.{extension}", data()), ("a.txt", b"words"))(path)


def texts(data: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda path: of(("a.jpg", photo()), ("a.json", data()))(path)


def sparse(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> Callable[[Path], None]:
    """A member of so many zeros, which take no space on the disk."""

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.write(header(name, size, kind))
            file.seek(BLOCK + size + -size % BLOCK)
            file.write(header("a.jpg", len(photo())) + padded(photo()) + bytes(2 * BLOCK))

    return make


def raw(data: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(data()), None)[1]


def pax_records() -> bytes:
    """One extended header of a megabyte, in records as short as can be: slow where each copies the rest."""
    data = b"".join(b"5 %c=\n" % (97 + number % 26) for number in range(170_000))
    return header("x", len(data), tarfile.XHDTYPE) + padded(data) + header("a.jpg", 0) + bytes(2 * BLOCK)


def pax_crowd() -> bytes:
    """40 extended headers of half a megabyte in a row, each with a key of its own."""
    parts = []
    for number in range(40):
        value = b"comment%d=" % number + b"x" * (1 << 19)
        data = b"%d " % (len(value) + 8) + value + b"\n"
        data = b"%d " % len(data) + value + b"\n"
        parts.append(header("x", len(data), tarfile.XHDTYPE) + padded(data))
    return b"".join(parts) + header("a.jpg", 0) + bytes(2 * BLOCK)


def base256(size: int) -> bytes:
    """A header whose size is given in GNU's way."""
    data = bytearray(header("a.jpg", 0))
    data[124:136] = b"\x80" + size.to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data) + bytes(2 * BLOCK)


ATTACKS: dict[str, Callable[[Path], None]] = {
    "a name that climbs out": of(("../a.jpg", photo())),
    "an absolute name": of(("/vlp-hostile.jpg", photo())),
    "a link": raw(lambda: header("a.jpg", 0, tarfile.SYMTYPE) + bytes(2 * BLOCK)),
    "a hard link": raw(lambda: header("a.jpg", 0, tarfile.LNKTYPE) + bytes(2 * BLOCK)),
    "a device": raw(lambda: header("a.jpg", 0, tarfile.CHRTYPE) + bytes(2 * BLOCK)),
    "a pipe": raw(lambda: header("a.jpg", 0, tarfile.FIFOTYPE) + bytes(2 * BLOCK)),
    "a member of 8 GB that is not there": raw(lambda: header("a.jpg", 8 * GIB - 1) + bytes(2 * BLOCK)),
    "a member of 2^80 bytes": raw(lambda: base256(1 << 80)),
    "a JSON of 1 GB": sparse("a.json", GIB),
    "a text of 20 MB": sparse("a.txt", 20 << 20),
    "an image of 300 MB": sparse("a.png", 300 << 20),
    "an array of 100 MB": sparse("a.features.npy", 100 << 20),
    "an npz of 100 MB": sparse("a.regions.npz", 100 << 20),
    "an extended header of 100 MB": sparse("x", 100 << 20, tarfile.XHDTYPE),
    "a long name of 100 MB": sparse("x", 100 << 20, tarfile.GNUTYPE_LONGNAME),
    "an extended header of 170,000 records": raw(pax_records),
    "40 extended headers in a row": raw(pax_crowd),
    "JSON nested a million deep": texts(lambda: b'{"captions": ' + b"[" * 1_000_000),
    "JSON objects nested a million deep": texts(lambda: b'{"a":' * 1_000_000),
    "a number of a million digits": texts(lambda: b'{"captions": ["a"], "width": ' + b"9" * 1_000_000 + b"}"),
    "JSON of five million empty objects": texts(lambda: b'{"captions": [' + b"{}," * 5_000_000 + b"{}]}"),
    "a caption of marks out of order": texts(
        lambda: json.dumps({"captions": ["a" + "\u0301" * 400_000 + "\u0316" * 400_000]}, ensure_ascii=False).encode()
    ),
    "a PNG of 50000 x 50000": image(lambda: png(50_000, 50_000)),
    "a PNG with a bomb for a text": image(lambda: png(1, 1, chunk(b"zTXt", b"a\0\0" + bomb(1024)), bytes(4))),
    "a PNG with a bomb for a profile": image(lambda: png(1, 1, chunk(b"iCCP", b"a\0\0" + bomb(1024)), bytes(4))),
    "a JPEG of 65500 x 65500": image(huge_jpeg, "jpg"),
    "a JPEG of 3000 scans": image(scans_jpeg, "jpg"),
    "a WebP of 16383 x 16383": image(large_webp, "webp"),
    "a pickle in an npz": regions(pickled),
    "an npz that unpacks to 2 GB": regions(lambda: bomb_npz(2 * GIB)),
    "an npz that unpacks to more than it says": regions(lambda: bomb_npz(200)),
    "an npz packed with lzma": regions(lambda: npz({"features.npy": bytes(100)}, zipfile.ZIP_LZMA)),
    "an npz of 20,000 members": regions(
        lambda: npz({f"{number:05d}.npy": b"" for number in range(20_000)}, zipfile.ZIP_STORED)
    ),
    "a pickle in an npy": regions(
        lambda: npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"), "features.npy"
    ),
    "an npy of 10^18 nothings": regions(lambda: shaped("(1000000000000000000,)", "|S0"), "features.npy"),
    "an npy with an empty side and an endless one": regions(lambda: shaped(f"(0, {10**30})"), "features.npy"),
    "an npy of 1000 dimensions": regions(lambda: shaped(f"(0, {'1,' * 1000})"), "features.npy"),
    "an npy of negative size": regions(lambda: shaped("(-1, 4)"), "features.npy"),
    "an npy whose header is a program": regions(lambda: npy("__import__('os').abort()"), "features.npy"),
    "an npy whose header is brackets": regions(lambda: npy("(" * 4000), "features.npy"),
    "an npy whose header is signs": regions(lambda: npy("-" * 4000 + "1"), "features.npy"),
}
"""What must be refused: when it is indexed, or, where only the decoder can know, when it is read or verified."""

COSTLY: dict[str, Callable[[Path], None]] = {"a PNG of 8000 x 8000": image(large_png)}
"""What is as large as may be, and taken."""


def outcome(directory: Path) -> list[str]:
    """What is said of a shard when it is indexed, read, and verified; anything but a sentence is an error here."""
    from data_tools.verify.directory import check_directory
    from data_tools.verify.findings import DAMAGE
    from vlp.data.image import PixelImages
    from vlp.data.index import build_index, open_index
    from vlp.data.samples import Fault
    from vlp.data.shards import ShardReader
    from vlp.errors import VlpError

    said = []
    try:
        build_index(directory)
        reader = ShardReader(open_index(directory))
        sample = reader.read(0, 0, image=True, regions=True, texts=True)
        PixelImages(32, 1).prepare(sample)
    except (VlpError, Fault) as error:
        said.append(str(error))
    verdict = check_directory(directory, 1, lambda done, total: None)
    return said + [str(finding) for kind in DAMAGE for finding in verdict.findings.kept.get(kind, [])]


def peak() -> int:
    """Megabytes of memory that this process had at most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) >> 10


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Open each shard below a folder, within 6 GB, and print what was said, the memory on top, and the CPU seconds."""
    resource.setrlimit(resource.RLIMIT_AS, (6 * GIB, 6 * GIB))
    import data_tools.verify.directory  # noqa: F401
    import vlp.data.image  # noqa: F401

    folders = sorted(Path(sys.argv[1]).iterdir())
    for folder in folders:
        forget_peak()
        before, start = peak(), time.process_time()
        said = outcome(folder)
        record = {"attack": folder.name, "said": said, "MB": peak() - before, "seconds": time.process_time() - start}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
