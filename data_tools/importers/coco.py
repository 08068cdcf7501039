"""`vlp-data coco`: COCO captions (2014, 2017, or the like)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from data_tools.importers.jsonfile import load_lists, name, text
from data_tools.importing.command import Into, Record, importer
from data_tools.options import ImagesIfAny, existing_file
from data_tools.report import Report


@importer
def coco(
    captions: Annotated[
        Path, typer.Option("--captions", metavar="FILE", help="COCO captions JSON (images and annotations).")
    ],
    into: Into,
    images: ImagesIfAny = None,
) -> None:
    """Turn COCO captions into shards. One sample per image, with all its captions."""
    report = into.report(captions=captions, images=images)
    into.write(read_coco(existing_file(captions, "--captions"), report), images=images, report=report)


class _Image(NamedTuple):
    id: int | str | None
    file: str | None


class _Caption(NamedTuple):
    image_id: int | str | None
    text: str | None


def read_coco(path: Path, report: Report) -> list[Record]:
    """The images of a COCO captions file, in its order, each with its captions in theirs.

    Raises:
        DataError: not a COCO captions file.
    """
    images, annotations = load_lists(path, ("images", "annotations"), "COCO's captions_*.json", _lean)
    report.count("images", len(images))
    report.count("captions", len(annotations))
    captions: dict[int | str, list[str]] = {}
    files: dict[int | str, str] = {}
    for number, image in enumerate(images):
        if not isinstance(image, _Image) or image.id is None or image.file is None:
            report.skip("image without 'id' or 'file_name'", f"images[{number}]")
        elif image.id in files:
            report.skip("image id stands twice", image.file)
        else:
            files[image.id] = image.file
            captions[image.id] = []
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, _Caption) or annotation.image_id is None or annotation.text is None:
            report.skip("annotation without 'image_id' or 'caption'", f"annotations[{number}]")
        elif annotation.image_id not in captions:
            report.skip("annotation of an image that the file does not list", f"image_id {annotation.image_id}")
        else:
            captions[annotation.image_id].append(annotation.text)
    return [Record(file, tuple(captions[id]), metadata={"image_id": id}) for id, file in files.items()]


def _lean(value: dict[str, Any]) -> Any:
    """What is needed of an object of the file: a third of the memory that the whole takes."""
    if "file_name" in value:
        return _Image(name(value, "id"), text(value, "file_name"))
    if "image_id" in value or "caption" in value:
        return _Caption(name(value, "image_id"), text(value, "caption"))
    return value
