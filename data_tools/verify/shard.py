"""Everything that can be wrong with one shard: its bytes, its tar, each member of each sample, its index file."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.pool import Tick
from data_tools.verify.findings import Finding, Findings
from data_tools.verify.salvage import salvage
from vlp.data import tar
from vlp.data.build import Sizes, checksum_of
from vlp.data.imagefile import IMAGE_EXTENSIONS, ImageFault, checked_image
from vlp.data.manifest import INDEX, Manifest, ShardEntry
from vlp.data.samples import Fault, check_texts, checked_regions, parse_texts, region_arrays
from vlp.data.scan import Places, grouped, scan_shard
from vlp.data.tables import load_table, make_entry, table_bytes
from vlp.errors import DataError

Widths = tuple[int, int]
"""Numbers of a region's feature, and of its class probabilities (0: none)."""


@dataclass(frozen=True)
class Target:
    """What is checked."""

    directory: Path
    manifest: Manifest | None
    """None where there is none that can be read."""

    @property
    def text_only(self) -> bool:
        return self.manifest is not None and self.manifest.text_only

    @cached_property
    def entries(self) -> dict[str, ShardEntry]:
        """What the manifest says of each shard."""
        return {entry.name: entry for entry in self.manifest.shards} if self.manifest is not None else {}


@dataclass
class Looked:
    """What one sample holds."""

    faults: list[Fault] = field(default_factory=list)
    texts: int = 0
    widths: Widths | None = None
    """Of its regions, if it has any."""
    image: bytes | None = None
    """Hash of the image's bytes."""

    @property
    def bare(self) -> bool:
        return self.image is None and self.widths is None and not self.faults


@dataclass
class ShardCheck:
    """What was found in one shard."""

    name: str
    samples: int = 0
    findings: Findings = field(default_factory=Findings)
    widths: Counter[Widths] = field(default_factory=Counter)
    first_of_width: dict[Widths, str] = field(default_factory=dict)
    """The key of the first sample with regions of these widths."""
    key_hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    image_hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Of the samples that have one, in their order."""
    sound: tuple[ShardEntry, Sizes] | None = None
    """What the index should say of it; None if it is damaged."""

    @property
    def mixed(self) -> bool:
        """Whether its own samples are of several widths; which of them are wrong, the other shards must tell."""
        return any(len({widths[part] for widths in self.widths} - {0}) > 1 for part in range(2))


def check_shard(target: Target, name: str, tick: Tick) -> ShardCheck:
    """Read a shard from its first byte to its last."""
    check = ShardCheck(name)
    path = target.directory / name
    try:
        _check_samples(path, check, tick)
        checksum, size = checksum_of(path), path.stat().st_size
    except OSError as error:
        check.findings.add(Finding("tar", f"cannot be read: {error.strerror or error}", name))
        return check
    file = target.directory / INDEX / f"{name.removesuffix('.tar')}.npz"
    entry = _entry(target, name, file)
    if entry is not None and entry.checksum != checksum:
        reason = f"has {size} bytes where the index says {entry.bytes}" if size != entry.bytes else "changed since"
        check.findings.add(Finding("checksum", f"is not what was indexed: {reason}", name))
    wanted = _indexed(target, path, check, checksum)
    if entry is not None:
        _check_table(file, wanted, check)
    return check


def _entry(target: Target, name: str, file: Path) -> ShardEntry | None:
    """What the manifest says of a shard, or, where there is none, the shard's own index file."""
    if target.manifest is not None:
        return target.entries.get(name)
    try:
        return load_table(file)[1]
    except DataError:
        return None


def look(read: Callable[[str], bytes | None]) -> Looked:
    """One sample, every member of it read as a loader would and the image decoded.

    Args:
        read: gives the bytes of a member by its extension, None where there is no such member.
    """
    looked = Looked()
    try:
        texts = parse_texts(read("json"), read("txt"))
        check_texts(texts)
        looked.texts = len(texts.captions) + len(texts.questions)
    except Fault as fault:
        looked.faults.append(fault)
    for extension in IMAGE_EXTENSIONS:
        data = read(extension)
        if data is None:
            continue
        looked.image = hashlib.blake2b(data, digest_size=8).digest()
        try:
            checked_image(data)
        except ImageFault as image_fault:
            looked.faults.append(Fault(extension, str(image_fault)))
    try:
        arrays = region_arrays(read)
        if arrays:
            regions = checked_regions(arrays)
            classes = regions.class_probs_RC.shape[1] if regions.class_probs_RC is not None else 0
            looked.widths = regions.features_RD.shape[1], classes
    except Fault as fault:
        looked.faults.append(fault)
    return looked


def reader(descriptor: int, places: Places) -> Callable[[str], bytes | None]:
    """Reads the members of one sample of an open tar."""

    def read(extension: str) -> bytes | None:
        if extension not in places:
            return None
        offset, size = places[extension]
        try:
            data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise Fault(extension, f"cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise Fault(extension, f"has {len(data)} of {size} bytes")
        return data

    return read


def kind_of(fault: Fault) -> str:
    """The kind of finding that a fault of a member is."""
    if fault.member in ("json", "txt", "captions", "questions"):
        return "text"
    return "image" if fault.member in IMAGE_EXTENSIONS else "regions"


def _check_samples(path: Path, check: ShardCheck, tick: Tick) -> None:
    def told(kind: str, reason: str, key: str = "", member: str = "") -> None:
        check.findings.add(Finding(kind, reason, check.name, key, member))

    found = salvage(path, lambda fault: told("tar", str(fault)))
    samples = grouped(found, lambda key, reason: told("member", reason, key))
    keys, images = [], []
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for key, places in samples.items():
            looked = look(reader(descriptor, places))
            for fault in looked.faults:
                told(kind_of(fault), fault.reason, key, fault.member)
            if looked.bare:
                told("no image", "has neither an image nor regions", key)
            if not looked.texts and not looked.faults:
                told("no text", "has neither a caption nor a question", key)
            if looked.widths is not None:
                check.widths[looked.widths] += 1
                check.first_of_width.setdefault(looked.widths, key)
            keys.append(hashlib.blake2b(key.encode(), digest_size=8).digest())
            images += [looked.image] if looked.image is not None else []
            tick()
    finally:
        os.close(descriptor)
    check.samples = len(samples)
    check.key_hashes = np.frombuffer(b"".join(keys), np.uint64)
    check.image_hashes = np.frombuffer(b"".join(images), np.uint64)


def _indexed(target: Target, path: Path, check: ShardCheck, checksum: str) -> bytes | None:
    """What the shard's index file should hold; None if the shard is damaged."""
    if check.findings.damage() or check.mixed:
        return None
    try:
        table = scan_shard(path, text_only=target.text_only)
    except (DataError, tar.TarFault) as error:
        check.findings.add(Finding("tar", f"cannot be indexed: {str(error).removeprefix(f'{path}: ')}", check.name))
        return None
    entry = make_entry(table, check.name, path.stat().st_size, checksum)
    check.sound = entry, Sizes.of(table)
    return table_bytes(table, entry)


def _check_table(file: Path, wanted: bytes | None, check: ShardCheck) -> None:
    """A shard's index file against the shard, or against itself where the shard is damaged."""
    try:
        data = file.read_bytes()
        if wanted is None:
            wanted = table_bytes(*load_table(file))
    except OSError as error:
        check.findings.add(Finding("index", f"cannot be read: {error.strerror or error}", file.name))
    except DataError as error:
        check.findings.add(Finding("index", str(error).removeprefix(f"{file}: "), file.name))
    else:
        if data != wanted:
            check.findings.add(Finding("index", "is damaged, or says something else than the shard", file.name))
