"""A whole data directory checked: its shards in processes, then what only all of them together can tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.journal import Journal
from data_tools.pool import Pool, processes
from data_tools.verify.findings import Finding, Findings
from data_tools.verify.salvage import salvage
from data_tools.verify.shard import ShardCheck, Target, Widths, check_shard
from vlp.data.arrays import ArrayFault, npz_bytes, read_npz
from vlp.data.build import make_manifest
from vlp.data.imagefile import IMAGE_EXTENSIONS
from vlp.data.index import Index
from vlp.data.lengths import TokenLengths
from vlp.data.manifest import INDEX, MANIFEST, Manifest, fingerprint, is_intact, read_manifest
from vlp.data.scan import grouped
from vlp.data.storage import remote_url
from vlp.errors import ConfigError, DataError

_SHOWN_TWICE = 3
"""Duplicates that are named: to find a name, its tar is walked again."""


@dataclass
class Verdict:
    """What a check of a directory came to."""

    directory: Path
    manifest: Manifest | None
    """None where there is none that can be read."""
    shards: list[ShardCheck]
    findings: Findings = field(default_factory=Findings)
    text_only: bool = False
    widths: Widths = (0, 0)
    """What the regions should have; 0 where no sample has them."""

    @property
    def samples(self) -> int:
        return sum(check.samples for check in self.shards)


def check_directory(directory: Path, workers: int | None, watch: Callable[[int, int | None], None]) -> Verdict:
    """Check a data directory, indexed or not.

    Args:
        workers: processes that read shards; None for as many as there are usable CPUs.
        watch: told the number of samples that were looked at, and of all if the index tells.
    Raises:
        ConfigError: no directory, or nothing in it to check.
    """
    if (url := remote_url(directory)) is not None:
        raise ConfigError(f"{url}: is checked before it is uploaded; give the local directory")
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory; give the directory that holds the *.tar shards")
    findings = Findings()
    manifest = _read_manifest(directory, findings)
    names = sorted(path.name for path in directory.glob("*.tar") if not path.name.startswith("."))
    if not names and manifest is None and not findings.damage():
        raise ConfigError(f"{directory}: holds no *.tar shard and no index; give the directory of the shards")
    total = manifest.samples + manifest.left_out if manifest is not None else None
    with Pool(Target(directory, manifest), processes(workers, len(names)), lambda done: watch(done, total)) as pool:
        verdict = Verdict(directory, manifest, list(pool.ordered(check_shard, names)), findings)
    for check in verdict.shards:
        findings.update(check.findings)
    bare = findings.counts["no image"]
    verdict.text_only = manifest.text_only if manifest is not None else 0 < bare == verdict.samples
    if verdict.text_only:
        findings.forget("no image")
    _check_widths(verdict)
    if manifest is not None:
        _check_manifest(verdict, manifest)
        _check_lengths(directory, manifest, findings)
    if Journal(directory).plan() is not None:
        findings.add(Finding("unfinished", "holds an unfinished import", str(directory)))
    _find_duplicates(verdict)
    return verdict


def _read_manifest(directory: Path, findings: Findings) -> Manifest | None:
    try:
        manifest = read_manifest(directory)
        data = (directory / INDEX / MANIFEST).read_bytes()
    except FileNotFoundError:
        findings.add(Finding("no index", f"has no index; make it with `vlp-data index {directory}`", str(directory)))
        return None
    except OSError as error:
        findings.add(Finding("index", f"cannot be read: {error.strerror or error}", MANIFEST))
        return None
    except DataError as error:
        findings.add(Finding("index", str(error).removeprefix(f"{directory / INDEX / MANIFEST}: "), MANIFEST))
        return None
    if not is_intact(data, manifest):
        findings.add(Finding("index", "is damaged: its checksum does not fit", MANIFEST))
    return manifest


def _check_widths(verdict: Verdict) -> None:
    """The widths that the index tells, else those of most samples; the others are wrong."""
    counted: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for check in verdict.shards:
        for widths, count in check.widths.items():
            for part in range(2):
                counted[part][widths[part]] += count if widths[part] else 0
    manifest = verdict.manifest
    told = (manifest.feature_width, manifest.class_count) if manifest is not None else (None, None)
    most = [max(counted[part], key=counted[part].__getitem__, default=0) for part in range(2)]
    verdict.widths = told[0] or most[0], told[1] or most[1]
    for check in verdict.shards:
        for widths, count in check.widths.items():
            if not fit(widths, verdict.widths):
                those, wanted = (f"{wide} wide with {classes} classes" for wide, classes in (widths, verdict.widths))
                reason = f"is the first of {count} here whose regions are {those}, not {wanted}"
                verdict.findings.add(Finding("width", reason, check.name, check.first_of_width[widths]), count)


def fit(widths: Widths, wanted: Widths) -> bool:
    """Whether a sample's regions are as wide as they should be; class probabilities may be missing."""
    return widths[0] == wanted[0] and widths[1] in (0, wanted[1])


def _check_manifest(verdict: Verdict, manifest: Manifest) -> None:
    findings, there = verdict.findings, {check.name for check in verdict.shards}
    named = {entry.name for entry in manifest.shards}
    for name in sorted(named - there):
        findings.add(Finding("missing", "is not there", name))
    for name in sorted(there - named):
        findings.add(Finding("foreign", "is not in the index", name))
    if fingerprint(manifest.shards, manifest.text_only) != manifest.fingerprint:
        findings.add(Finding("index", "has a fingerprint that does not fit its shards", MANIFEST))
    sound = [check.sound for check in verdict.shards if check.sound is not None]
    if named != there or len(sound) != len(named) or findings.counts["width"]:
        return
    made = make_manifest(verdict.directory, sound, text_only=manifest.text_only, notes=manifest.made_by).plain()
    # A manifest without a checksum was written before there were some of the other keys.
    keys = made if manifest.checksum else ("shards", "feature_width", "class_count")
    told = manifest.plain()
    wrong = [key for key in keys if key != "checksum" and made[key] != told[key]]
    if wrong:
        findings.add(Finding("index", f"says something else than the shards under '{wrong[0]}'", MANIFEST))


def _check_lengths(directory: Path, manifest: Manifest, findings: Findings) -> None:
    """Token lengths against themselves and the index; what they should be, only their tokenizer knows."""
    index = Index(directory, manifest)
    for folder in sorted((directory / INDEX).glob("lengths-*")):
        lengths = TokenLengths(index, (folder,), 1)
        for shard, entry in enumerate(manifest.shards):
            path = folder / f"{entry.name.removesuffix('.tar')}.npz"
            if not path.is_file():
                continue
            name = f"{folder.name}/{path.name}"
            try:
                columns = lengths.table(shard)
                whole = npz_bytes(read_npz(path)) == path.read_bytes()
            except (DataError, ArrayFault, OSError) as error:
                findings.add(Finding("lengths", str(error).removeprefix(f"{path}: "), name))
                continue
            if not whole or any(len(column) and column.min() < 0 for column in columns):
                findings.add(Finding("lengths", "is damaged; remove the file, it will be made again", name))


def _find_duplicates(verdict: Verdict) -> None:
    for kind, hashes in (
        ("same key", [check.key_hashes for check in verdict.shards]),
        ("same image", [check.image_hashes for check in verdict.shards]),
    ):
        for shard, row in _repeated(hashes, verdict.findings, kind):
            check = verdict.shards[shard]
            key = _key(verdict.directory / check.name, row, with_image=kind == "same image")
            verdict.findings.kept.setdefault(kind, []).append(
                Finding(kind, f"has the {kind.removeprefix('same ')} of an earlier sample", check.name, key)
            )


def _repeated(hashes: list[NDArray[np.uint64]], findings: Findings, kind: str) -> Iterator[tuple[int, int]]:
    """Counts all that repeat an earlier one; gives the shard and the row in it of the first few."""
    ends = np.cumsum([len(part) for part in hashes])
    joined = np.concatenate([np.zeros(0, np.uint64), *hashes])
    _, first = np.unique(joined, return_index=True)
    repeats = np.ones(len(joined), np.bool_)
    repeats[first] = False
    if repeats.any():
        findings.counts[kind] += int(repeats.sum())
    for place in islice(np.flatnonzero(repeats).tolist(), _SHOWN_TWICE):
        shard = int(np.searchsorted(ends, place, side="right"))
        yield shard, place - (int(ends[shard - 1]) if shard else 0)


def _key(path: Path, row: int, *, with_image: bool) -> str:
    """The key of a shard's sample number `row`, counting all or those that have an image."""
    samples = grouped(salvage(path, lambda fault: None), lambda key, reason: None)
    keys = [key for key, places in samples.items() if not with_image or not places.keys().isdisjoint(IMAGE_EXTENSIONS)]
    return keys[row] if row < len(keys) else ""
