"""`vlp-data vg`: Visual Genome's region descriptions and questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from data_tools.importers.jsonfile import elements, name, text
from data_tools.importing.command import Into, Record, importer
from data_tools.options import ImagesIfAny, existing_directory, existing_file
from data_tools.report import Report
from vlp.data.samples import clean
from vlp.errors import ConfigError, DataError
from vlp.types import Question

_DESCRIPTIONS = "Visual Genome's region_descriptions.json"
_QA = "Visual Genome's question_answers.json"
_IMAGES = "Visual Genome's image_data.json"
_FOLDERS = ("VG_100K/", "VG_100K_2/", "")
"""Where `<id>.jpg` may lie; the archives unpack to the first two."""
_DIGITS = 4
"""Of a box, as a share of the image: a tenth of a pixel of a photo 1000 pixels wide."""


@importer
def vg(
    into: Into,
    descriptions: Annotated[
        Path | None, typer.Option("--descriptions", metavar="FILE", help="region_descriptions.json: captions.")
    ] = None,
    qa: Annotated[Path | None, typer.Option("--qa", metavar="FILE", help="question_answers.json: questions.")] = None,
    image_data: Annotated[
        Path | None,
        typer.Option(
            "--image-data", metavar="FILE", help="image_data.json: keeps the captions' boxes and the images' COCO ids."
        ),
    ] = None,
    images: ImagesIfAny = None,
) -> None:
    """Turn Visual Genome into shards: --descriptions (phrases are captions), --qa, or both. One sample per image."""
    if descriptions is None and qa is None:
        raise ConfigError("vlp-data vg: nothing to read; give --descriptions, --qa or both")
    for path, option in ((descriptions, "--descriptions"), (qa, "--qa"), (image_data, "--image-data")):
        if path is not None:
            existing_file(path, option)
    if images is not None:
        existing_directory(images, "--images")
    report = into.report(descriptions=descriptions, qa=qa, image_data=image_data, images=images)
    into.write(read_vg(descriptions, qa, image_data, images, report), images=images, report=report)


class _About(NamedTuple):
    """What image_data.json says of an image."""

    width: int
    height: int
    coco_id: int | None


def read_vg(
    descriptions: Path | None, qa: Path | None, image_data: Path | None, images: Path | None, report: Report
) -> Iterator[Record]:
    """One record per image: its region descriptions are its captions, its questions have one answer each.

    First the images of `descriptions` in their order, then those that only `qa` has. With `image_data` the metadata
    hold `coco_id` (half of the images are COCO's: without care, a test set is trained on) and `caption_boxes`, the box
    of each caption as x1, y1, x2, y2 in 0..1 (None where it has none); without, boxes are left out, since their pixels
    are those of the original photos.

    Args:
        images: looked through for the folder of each image.
    Raises:
        DataError: not such files.
    """
    about = _image_data(image_data, report) if image_data is not None else {}
    asked = _questions(qa, report) if qa is not None else {}
    seen: set[str] = set()
    for id, regions in _images_of(descriptions, "regions", _DESCRIPTIONS, report) if descriptions is not None else ():
        if id in seen:
            report.skip("image stands twice", f"id {id}")
            continue
        seen.add(id)
        known = about.get(id)
        captions, boxes = _captions(id, regions, known, report)
        more = {"caption_boxes": boxes} if known is not None else {}
        yield _record(id, images, captions, asked.pop(id, []), known, more)
    for id, questions in asked.items():
        yield _record(id, images, [], questions, about.get(id), {})


def _record(
    id: str,
    images: Path | None,
    captions: list[str],
    questions: list[Question],
    known: _About | None,
    more: dict[str, Any],
) -> Record:
    file = f"{id}.jpg"
    folders = () if images is None else (folder for folder in _FOLDERS if (images / f"{folder}{file}").is_file())
    metadata: dict[str, Any] = {"image_id": int(id) if id.isdecimal() else id, **more}
    if known is not None and known.coco_id is not None:
        metadata["coco_id"] = known.coco_id
    return Record(f"{next(iter(folders), '')}{file}", tuple(captions), tuple(questions), metadata)


def _captions(id: str, regions: list[Any], known: _About | None, report: Report) -> tuple[list[str], list[Any]]:
    captions, boxes = [], []
    report.count("captions", len(regions))
    for region in regions:
        phrase = text(region, "phrase")
        if phrase is None:
            report.skip("region without a 'phrase'", f"image {id}")
        elif not clean(phrase):
            report.skip("empty caption", f"image {id}")  # here already, so that captions and boxes stay together
        else:
            captions.append(phrase)
            boxes.append(_box(region, known) if known is not None else None)
    return captions, boxes


def _box(region: dict[str, Any], known: _About) -> list[float] | None:
    values = [region.get(key) for key in ("x", "y", "width", "height")]
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) < len(values):
        return None
    x, y, width, height = numbers
    corners = (x / known.width, y / known.height, (x + width) / known.width, (y + height) / known.height)
    x1, y1, x2, y2 = (round(min(max(corner, 0.0), 1.0), _DIGITS) for corner in corners)
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else None


def _questions(path: Path, report: Report) -> dict[str, list[Question]]:
    asked: dict[str, list[Question]] = {}
    ids: set[str] = set()
    answers: dict[str, tuple[str]] = {}
    for image, pairs in _images_of(path, "qas", _QA, report):
        report.count("questions", len(pairs))
        for pair in pairs:
            id, question, answer = name(pair, "qa_id"), text(pair, "question"), text(pair, "answer")
            if id is None or question is None or answer is None:
                report.skip("question without 'qa_id', 'question' or 'answer'", f"image {image}")
            elif str(id) in ids:
                report.skip("question id stands twice", str(id))
            else:
                ids.add(str(id))
                once = answers.setdefault(answer, (answer,))
                asked.setdefault(image, []).append(Question(question, once, str(id)))
    return asked


def _image_data(path: Path, report: Report) -> dict[str, _About]:
    about = {}
    for number, entry in enumerate(elements(path, _IMAGES)):
        id, width, height = _id(entry), name(entry, "width"), name(entry, "height")
        if id is None or not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
            report.skip("image data without 'image_id', 'width' or 'height'", f"[{number}]")
            continue
        coco = name(entry, "coco_id")
        about[id] = _About(width, height, coco if isinstance(coco, int) else None)
    if not about:
        raise DataError(f"{path}: has no entry with 'image_id', 'width' and 'height'; give {_IMAGES}")
    return about


def _images_of(path: Path, key: str, wanted: str, report: Report) -> Iterator[tuple[str, list[Any]]]:
    """Ids and entries of a file's images."""
    good = 0
    for number, entry in enumerate(elements(path, wanted)):
        id = _id(entry)
        found = entry.get(key) if id is not None else None
        if id is None or not isinstance(found, list):
            report.skip(f"image without 'id' or '{key}'", f"{path.name} [{number}]")
            continue
        good += 1
        report.count(f"images of {path.name}")
        yield id, found
    if not good:
        raise DataError(f"{path}: has no image with 'id' and '{key}'; give {wanted}")


def _id(entry: Any) -> str | None:
    """Files have it under `id` or `image_id`, by their version."""
    id = name(entry, "id")
    id = name(entry, "image_id") if id is None else id
    return None if id is None else str(id)
