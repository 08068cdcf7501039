"""`vlp-data easy-vqa`: the toy dataset of drawn shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.importers.jsonfile import elements, encodable
from data_tools.importers.questions import QuestionsByImage
from data_tools.importing.command import Into, Record, importer
from data_tools.options import Images, existing_file
from data_tools.report import Report
from vlp.errors import DataError

_WANTED = "easy-VQA's questions.json: a list of [question, answer, image number]"


@importer
def easy_vqa(
    questions: Annotated[Path, typer.Option("--questions", metavar="FILE", help=f"{_WANTED}.")],
    images: Images,
    into: Into,
) -> None:
    """Turn easy-VQA into shards. One sample per image, with all its questions."""
    report = into.report(questions=questions, images=images)
    into.write(read_easy_vqa(existing_file(questions, "--questions"), report), images=images, report=report)


def read_easy_vqa(path: Path, report: Report) -> list[Record]:
    """The images (`<number>.png`) in the order of their first question, each with its questions.

    A question's id is its number in the file, from 0.

    Raises:
        DataError: not such a file.
    """
    gathered = QuestionsByImage(report)
    good = 0
    for number, entry in enumerate(elements(path, _WANTED)):
        match entry:
            case [str(question), str(answer), int(image)] if encodable(question + answer):
                good += 1
                gathered.add(f"{image}.png", question, (answer,), str(number), metadata={"image_id": image})
            case _:
                gathered.skip("entry that is not [question, answer, image number]", f"[{number}]")
    if not good:
        raise DataError(f"{path}: has no entry [question, answer, image number]; give {_WANTED}")
    return gathered.records()
