"""Region features that people already have: a directory with one npz per image, in UNITER's naming."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from vlp.data.samples import Fault, checked_regions, regions_npz
from vlp.errors import ConfigError
from vlp.types import Regions


class NpzRegions:
    """Regions of images, from `<image>.npz` holding `features`, `norm_bb`, `conf`, `soft_labels`.

    The file lies as the image does among the images, or, by its name alone, at the top of the directory.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ConfigError(f"--regions {directory}: no such directory")
        if next(directory.rglob("*.npz"), None) is None:
            raise ConfigError(f"--regions {directory}: holds no .npz file; it should have one per image")
        self.directory = directory
        self._taken: dict[str, str] = {}

    def read(self, image: str) -> Regions | None:
        """The regions of an image, by its path among the images; None if there is no file for it.

        Raises:
            Fault: the file is damaged or its arrays are not what they should be.
        """
        wanted = PurePosixPath(image).with_suffix(".npz")
        path = self.directory / wanted
        if not path.is_file():
            path = self.directory / wanted.name
            first = self._taken.setdefault(wanted.name, image)
            if first != image:
                raise Fault(
                    wanted.name,
                    f"stands for two images, {first} and {image}: sort the files into folders as the images",
                )
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Fault(path.name, f"cannot be read: {error.strerror}") from None
        return checked_regions(regions_npz(data))
