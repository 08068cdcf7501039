"""`vlp-data daquar`: DAQUAR's triples of lines: question, answers, image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.importers.questions import QuestionsByImage
from data_tools.importers.textfile import text_lines
from data_tools.importing.command import Into, Record, importer
from data_tools.options import ImagesIfAny, existing_directory, existing_file
from data_tools.report import Report
from vlp.data.imagefile import IMAGE_EXTENSIONS
from vlp.errors import DataError

_WANTED = "DAQUAR's qa.*.format_triple: question, answers, image, one a line"


@importer
def daquar(
    qa: Annotated[Path, typer.Option("--qa", metavar="FILE", help=f"{_WANTED}.")],
    into: Into,
    images: ImagesIfAny = None,
) -> None:
    """Turn DAQUAR into shards. One sample per image, with all its questions."""
    report = into.report(qa=qa, images=images)
    if images is not None:
        existing_directory(images, "--images")
    into.write(read_daquar(existing_file(qa, "--qa"), images, report), images=images, report=report)


def read_daquar(path: Path, images: Path | None, report: Report) -> list[Record]:
    """The images of a file of triples in the order of their first question, each with its questions.

    A question has one answer, the line as written: "book, scissor, tape_dispenser" is one answer of three things. The
    dataset's accuracy compares that line; its WUPS score takes it apart at ", ". As several answers they would count as
    people who disagree. The question's id is its number in the file, from 0.

    Args:
        images: looked through for files of the images' names, with any extension.
    Raises:
        DataError: not UTF-8, or not such triples.
    """
    lines = [line.strip() for _, line in text_lines(path, blank=True)]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or len(lines) % 3:
        raise DataError(f"{path}: has {len(lines)} lines, which is not three a sample; give {_WANTED}")
    files = _by_stem(images, report) if images is not None else {}
    gathered = QuestionsByImage(report)
    for number in range(0, len(lines), 3):
        question, answer, image = lines[number : number + 3]
        if not image or len(image.split()) > 1:
            raise DataError(f"{path} line {number + 3}: is no image's name, {image!r}; give {_WANTED}")
        if not answer:
            gathered.skip("question without an answer", f"line {number + 1}")
            continue
        gathered.add(files.get(image, image), question, (answer,), str(number // 3))
    return gathered.records()


def _by_stem(images: Path, report: Report) -> dict[str, str]:
    """File names by what stands before the extension."""
    files: dict[str, str] = {}
    for path in sorted(images.iterdir()):
        if path.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS:
            continue
        if files.setdefault(path.stem, path.name) != path.name:
            report.note(f"not taken: {files[path.stem]} has the same name", path.name)
    return files
