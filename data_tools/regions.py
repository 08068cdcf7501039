"""Region features that people already have: a directory with one npz per image, in UNITER's naming."""

from __future__ import annotations

from pathlib import Path

from vlp.data.samples import Fault, checked_regions, regions_npz
from vlp.errors import ConfigError
from vlp.types import Regions


class NpzRegions:
    """Regions by image id, from `<image id>.npz` holding `features`, `norm_bb`, `conf`, `soft_labels`."""

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ConfigError(f"--regions {directory}: no such directory")
        if next(directory.glob("*.npz"), None) is None:
            raise ConfigError(f"--regions {directory}: holds no .npz file; it should have one per image")
        self.directory = directory

    def read(self, image_id: str) -> Regions | None:
        """The regions of an image; None if there is no file for it.

        Raises:
            Fault: the file is damaged or its arrays are not what they should be.
        """
        path = self.directory / f"{image_id}.npz"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Fault(path.name, f"cannot be read: {error.strerror}") from None
        return checked_regions(regions_npz(data))
