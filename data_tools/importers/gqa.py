"""`vlp-data gqa`: GQA's questions (train_balanced_questions.json, train_all_questions_*.json, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from data_tools.importers.jsonfile import entries, name, text
from data_tools.importers.questions import QuestionsByImage
from data_tools.importing.command import Into, Record, importer
from data_tools.options import ImagesIfAny, files_of
from data_tools.report import Report
from vlp.errors import DataError

_WANTED = "GQA's *_questions.json"
_TYPES = ("structural", "semantic", "detailed")


@importer
def gqa(
    questions: Annotated[
        list[Path],
        typer.Option(
            "--questions", metavar="PATH", help=f"{_WANTED}, or a folder of them; may be given several times."
        ),
    ],
    into: Into,
    images: ImagesIfAny = None,
) -> None:
    """Turn GQA into shards. One sample per image, with all its questions."""
    report = into.report(questions=questions, images=images)
    into.write(read_gqa(files_of(questions, "--questions", ".json"), report), images=images, report=report)


def read_gqa(questions: Sequence[Path], report: Report) -> list[Record]:
    """The images of question files in the order of their first question, each with its questions.

    Of a question its text, answer, id and types are kept; test files have no answers. Files are read in pieces: those
    of all questions have more than a gigabyte each.

    Raises:
        DataError: not such a file.
    """
    gathered = QuestionsByImage(report)
    for path in questions:
        good = 0
        for id, entry in entries(path, _WANTED):
            image, question = name(entry, "imageId"), text(entry, "question")
            if image is None or question is None:
                gathered.skip("question without 'imageId' or 'question'", f"{path.name}: {id}")
                continue
            good += 1
            answer = text(entry, "answer")
            kinds = entry.get("types")
            types = {key: kind for key in _TYPES if (kind := text(kinds, key)) is not None}
            gathered.add(f"{image}.jpg", question, () if answer is None else (answer,), id, types, {"image_id": image})
        if not good:
            raise DataError(f"{path}: has no question with 'imageId' and 'question'; give {_WANTED}")
    return gathered.records()
