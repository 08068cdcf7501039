"""Region features that people already have: one npz per image, a bottom-up-attention TSV, or one npz of vectors.

All are read by the image's file name, in any order and from any process, behind one protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_tools.regions.tsv import TsvRegions
from vlp.data.arrays import ArrayFault, read_npz
from vlp.data.samples import Fault, checked_regions, regions_npz
from vlp.errors import ConfigError, DataError
from vlp.types import Regions

_MAX_VECTORS = 4 << 30
"""Bytes of an npz of vectors, unpacked: 250,000 images at 4096 float32. Every process holds its own copy."""


class RegionSource(Protocol):
    """Regions of images; can be pickled, and read in many processes at once."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What the regions are, for the manifest's `made_by.regions`."""

    def entry(self, image: str) -> str | None:
        """The name under which it has the regions of an image; None if it has none.

        Two images of one name share regions: `a/1.jpg` and `b/1.jpg`, where all it has is `1`.
        """

    def read(self, image: str) -> Regions | None:
        """The regions of an image, by its path among the images; None if it has none.

        Raises:
            Fault: the entry is damaged or its arrays are not what they should be.
        """


def open_regions(path: Path, option: str = "--regions") -> RegionSource:
    """The region features that a path names: a directory of npz, a `.tsv`, or one `.npz` of vectors.

    Args:
        option: the option that gave the path, for errors.
    Raises:
        ConfigError: no such path, or nothing of the three.
        DataError: the file is not what its name says.
    """
    if path.is_dir():
        return NpzRegions(path, option)
    if not path.is_file():
        raise ConfigError(f"{option} {path}: no such file or directory")
    if path.suffix == ".tsv":
        return TsvRegions(path)
    if path.suffix == ".npz":
        return VectorRegions(path)
    raise ConfigError(
        f"{option} {path}: is neither a directory of .npz files, nor a bottom-up-attention .tsv, nor an .npz of vectors"
    )


class NpzRegions:
    """Regions of images, from `<image>.npz` holding `features`, `norm_bb`, `conf`, `soft_labels` (UNITER's naming).

    The file lies as the image does among the images, or, by its name alone, at the top of the directory.
    """

    def __init__(self, directory: Path, option: str = "--regions") -> None:
        if not directory.is_dir():
            raise ConfigError(f"{option} {directory}: no such directory")
        if next(directory.rglob("*.npz"), None) is None:
            raise ConfigError(f"{option} {directory}: holds no .npz file; it should have one per image")
        self.directory = directory

    @property
    def provenance(self) -> dict[str, Any]:
        return {"from": "npz", "source": self.directory.name}

    def entry(self, image: str) -> str | None:
        wanted = PurePosixPath(image).with_suffix(".npz")
        for name in (wanted, PurePosixPath(wanted.name)):
            if (self.directory / name).is_file():
                return str(name)
        return None

    def read(self, image: str) -> Regions | None:
        entry = self.entry(image)
        if entry is None:
            return None
        try:
            data = (self.directory / entry).read_bytes()
        except OSError as error:
            raise Fault(PurePosixPath(entry).name, f"cannot be read: {error.strerror}") from None
        return checked_regions(regions_npz(data))


class VectorRegions:
    """One vector per image, as one region that is the whole image: an npz of `image_id` [S] and `features` [S, D]."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._standard: tuple[int, NDArray[np.float64], NDArray[np.float64]] | None = None
        self._vectors: tuple[dict[str, int], NDArray[Any]] | None = None
        self._load()

    def standardise(self, images: Iterable[str]) -> None:
        """Subtract the mean and divide by the standard deviation of each number, both taken over these images.

        Args:
            images: ids or file names, those of the training split.
        Raises:
            DataError: the file has less than two of them.
        """
        rows, features_SD = self._load()
        known = [rows[stem] for stem in dict.fromkeys(_stem(image) for image in images) if stem in rows]
        if len(known) < 2:
            raise DataError(f"{self.path}: has {len(known)} of the images to standardise by; give a list of its images")
        chosen_SD = features_SD[np.array(known)].astype(np.float64)
        spread_D = chosen_SD.std(axis=0)
        self._standard = len(known), chosen_SD.mean(axis=0), np.where(spread_D > 0, spread_D, 1)

    @property
    def provenance(self) -> dict[str, Any]:
        standard = {"standardised_by_images": self._standard[0]} if self._standard is not None else {}
        return {"from": "vectors", "source": self.path.name, **standard}

    def entry(self, image: str) -> str | None:
        stem = _stem(PurePosixPath(image).name)
        return stem if stem in self._load()[0] else None

    def read(self, image: str) -> Regions | None:
        entry = self.entry(image)
        if entry is None:
            return None
        rows, features_SD = self._load()
        features_1D = features_SD[rows[entry]][None]
        if self._standard is not None:
            _, mean_D, spread_D = self._standard
            features_1D = ((features_1D - mean_D) / spread_D).astype(np.float32)
        return checked_regions({"features": features_1D, "boxes": np.array([[0, 0, 1, 1]], np.float32)})

    def _load(self) -> tuple[dict[str, int], NDArray[Any]]:
        """Row by id, and the vectors; read again in every process instead of being pickled."""
        if self._vectors is None:
            arrays = self._arrays()
            ids, features_SD = arrays["image_id"], arrays["features"]
            if ids.dtype.kind not in "SUiu" or ids.ndim != 1 or features_SD.shape[:1] != ids.shape:
                raise DataError(
                    f"{self.path}: image_id has shape {list(ids.shape)} and features {list(features_SD.shape)}; "
                    "it should be one id and one vector per image"
                )
            names = np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids.astype(str)
            rows = {_stem(name): row for row, name in enumerate(names.tolist())}
            if len(rows) < len(ids):
                raise DataError(f"{self.path}: {len(ids) - len(rows)} of its image ids stand twice; keep one of each")
            self._vectors = rows, features_SD
        return self._vectors

    def _arrays(self) -> dict[str, NDArray[Any]]:
        try:
            arrays = read_npz(self.path, ("image_id", "features"), limit=_MAX_VECTORS)
        except ArrayFault as fault:
            raise DataError(f"{self.path}: {fault}; give an npz with image_id and features") from None
        for name in ("image_id", "features"):
            if name not in arrays:
                raise DataError(f"{self.path}: has no '{name}'; give an npz with image_id and features, or a directory")
        if arrays["features"].ndim != 2 or arrays["features"].dtype.kind != "f":
            kind = f"{arrays['features'].dtype} of shape {list(arrays['features'].shape)}"
            raise DataError(f"{self.path}: features are {kind}, not floating-point numbers [images, width]")
        return arrays

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_vectors": None}


def _stem(name: str) -> str:
    """An id without the ending of an image file; other dots belong to it."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and ending.lower() in ("jpg", "jpeg", "png", "webp") else name
