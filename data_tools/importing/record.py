"""The record: what a source says of one image, before anything is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from data_tools.writer import safe_key
from vlp.types import Question


class Skip(Exception):
    """This record is left out, for this reason."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a source says of one image; of texts alone, what is to make one sample."""

    file: str
    """The image, relative to the directory of images, with forward slashes. Its stem is the image id.

    Without photos it still is the name that regions are looked up by; for texts alone, any name of its own.
    """
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def id(self, text_only: bool) -> str:
        """The image id; a text's made-up name whole, since no ending is cut from it."""
        return self.file if text_only else PurePosixPath(self.file).stem

    def key(self, text_only: bool) -> str:
        """The sample's key in its shard."""
        return safe_key(self.file if text_only else str(PurePosixPath(self.file).with_suffix("")))

    def check_name(self) -> None:
        """Raises Skip for a name that cannot be one of an image below a directory."""
        parts = PurePosixPath(self.file)
        if parts.is_absolute() or ".." in parts.parts or "\\" in self.file or "\0" in self.file:
            raise Skip("image name points outside the directory of images")
        if not parts.name:
            raise Skip("image without a name")
        try:
            self.file.encode()
        except UnicodeEncodeError:
            raise Skip("image name that is not UTF-8") from None
