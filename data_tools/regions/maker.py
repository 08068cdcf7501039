"""What a maker of regions is: photos in, regions out. Detectors, backbones and files that hold regions are makers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data_tools.regions.sources import RegionSource
from vlp.data.samples import Fault
from vlp.types import Regions


@dataclass(frozen=True, slots=True)
class Photo:
    """What a maker may know of a sample."""

    id: str
    """The image id: a file's name without extension."""
    image: bytes | None = None
    """The image file."""
    regions: Regions | None = None
    """Those that the sample has so far."""


Found = Regions | Fault | None
"""A photo's regions; what is wrong with the photo or with its regions; or None where there are none."""


class RegionMaker(Protocol):
    """Makes regions of photos, of each photo by itself."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What makes the regions, for the manifest's `made_by.regions`."""

    @property
    def wants_image(self) -> bool:
        """Whether it reads `Photo.image`."""

    @property
    def wants_regions(self) -> bool:
        """Whether it reads `Photo.regions`."""

    def make(self, photos: Sequence[Photo]) -> list[Found]:
        """What is found on each photo."""


class StoredRegions:
    """Takes regions from what people have, by image id."""

    wants_image, wants_regions = False, False

    def __init__(self, source: RegionSource) -> None:
        self._source = source
        self.provenance = source.provenance

    def make(self, photos: Sequence[Photo]) -> list[Found]:
        """The stored regions of each photo; a Fault where they are damaged, None where there are none."""
        return [self._read(photo.id) for photo in photos]

    def _read(self, image_id: str) -> Found:
        try:
            # An id has no extension, and may have a dot all the same; sources look images up by their files' names.
            return self._source.read(f"{image_id}.jpg")
        except Fault as fault:
            return fault
