"""A pair as the model takes it, made of what users have: a sample of a shard, or files and words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlp.data.pictures import Picture, RegionsLike, prepared
from vlp.data.samples import Fault, check_characters
from vlp.data.shards import BadSample
from vlp.errors import ConfigError, VlpError
from vlp.types import Example, ImageInput, Sample

if TYPE_CHECKING:
    from vlp.vision_language_model import VisionLanguageModel

MAX_CHARACTERS = 1 << 20
"""Of a text. A longer one is no text for a model that reads some hundred tokens, and would take a GB to cut up."""


@dataclass(frozen=True)
class Item:
    """One pair on its way: an example, or why there is none."""

    id: str
    key: str
    """Of the sample that it belongs to: several texts of one photo share it."""
    words: str
    image: str = ""
    """What its source calls the image, whatever else the pair has; empty where there is none."""
    example: Example | None = None
    fault: tuple[str, str] | None = None
    """What is at fault (`jpg`, `text`, ...), and how."""

    @property
    def record(self) -> dict[str, str]:
        """What quarantine keeps of it."""
        member, error = self.fault or ("", "")
        return {"id": self.id, "member": member, "error": error}


class Preparing:
    """Makes the examples of a model's inputs. Holds no weights: cheap to send to loader workers."""

    def __init__(self, model: VisionLanguageModel) -> None:
        if model.text is None:
            raise ConfigError(
                "the model was saved without a tokenizer; give from_pretrained(..., tokenizer=DIR), and save it again"
            )
        self.text, self.images, self._task = model.text, model.images, model.trained_task
        without = model.task.without if model.task else None
        self._last: tuple[Sample | Files, ImageInput | None] | None = None
        self.shows_image, self._shows_text = without != "image", without != "text"

    @property
    def wants_image(self) -> bool:
        return self.shows_image and self.images.wants_image

    @property
    def wants_regions(self) -> bool:
        return self.shows_image and self.images.wants_regions

    def image_tokens(self, regions: int) -> int:
        """Most tokens of an image of so many regions."""
        return self.images.tokens(regions) if self.shows_image else self.images.form.framed(0)

    def item(self, id: str, key: str, words: str, image: Sample | Files, name: str = "") -> Item:
        """The pair of a text and an image, which its source calls by a name; what is wrong with them is recorded, never
        raised."""
        id, key, name = printable(id), printable(key), printable(name)
        try:
            return Item(id, key, words, name, self.example(id, words, image))
        except (Fault, BadSample) as fault:
            return Item(id, key, words[:1000], name, fault=(fault.member, fault.reason))
        except (VlpError, OSError, MemoryError, ValueError) as error:
            return Item(id, key, words[:1000], name, fault=("image", str(error) or type(error).__name__))

    def example(self, id: str, words: str, image: Sample | Files) -> Example:
        """Raises Fault, DataError: the text or the image cannot be used."""
        if len(words) > MAX_CHARACTERS:
            raise Fault("text", f"has {len(words)} characters, more than {MAX_CHARACTERS}")
        check_characters(words, "text")
        tokens_T, special_T, word_T = self.text.encode(words if self._shows_text else "")
        example = Example(id, tokens_T, special_T, word_T, self._image(image) if self.shows_image else None)
        return self._task.prompted(example) if self._task is not None else example

    def _image(self, image: Sample | Files) -> ImageInput | None:
        """The image as the model takes it; the last one is kept, since several texts of one photo come in turn."""
        if self._last is None or not _same(self._last[0], image):
            self._last = image, self._made(image)
        return self._last[1]

    def _made(self, image: Sample | Files) -> ImageInput | None:
        if isinstance(image, Sample):
            return self.images.prepare(image)
        self._refuse_the_other(image)
        picture = image.picture if self.images.wants_image else None
        regions = image.regions if self.images.wants_regions else None
        return prepared(self.images, picture, regions, "the pair")

    def _refuse_the_other(self, image: Files) -> None:
        """A photo may stand beside the regions that are read, to be shown; alone it would be passed over in silence."""
        if image.picture is not None and image.regions is None and not self.images.wants_image:
            raise Fault(
                "image",
                "is a photo, and the model reads regions of a detector; give regions (`vlp-data regions` makes them)",
            )
        if image.regions is not None and image.picture is None and not self.images.wants_regions:
            raise Fault("regions", "are given, and the model reads photos; give the image")


@dataclass(frozen=True)
class Files:
    """An image outside shards: a picture or its path, regions or their npz; a model takes what it reads."""

    picture: Picture | None = None
    regions: RegionsLike | None = None


def _same(one: Sample | Files, other: Sample | Files) -> bool:
    """Whether two images are known to be one: the same record, or the same files."""
    if one is other or isinstance(one, Sample) or isinstance(other, Sample):
        return one is other
    paths = (one.picture, one.regions, other.picture, other.regions)
    return all(path is None or isinstance(path, (str, Path)) for path in paths) and one == other


def printable(text: str) -> str:
    """With what is no character (bytes of a file's name that are no UTF-8) written out: any file may hold it."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
