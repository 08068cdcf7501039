"""`vlp-data vqa`: VQA v1 and v2 questions and annotations (and what follows their format, as OK-VQA does)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from data_tools.importers.jsonfile import load, load_lists, name, text
from data_tools.importers.questions import QuestionsByImage
from data_tools.importing.command import Into, Record, importer
from data_tools.options import ImagesIfAny, existing_directory, existing_file
from data_tools.report import Report
from vlp.errors import ConfigError, DataError

_QUESTIONS = "VQA's *_questions.json"
_ANNOTATIONS = "VQA's *_annotations.json"
_TYPES = ("question_type", "answer_type")

_NAMES = (
    "COCO_{subset}_{image_id:012d}.jpg",
    "{subset}/COCO_{subset}_{image_id:012d}.jpg",
    "{image_id:012d}.jpg",
    "{subset}/{image_id:012d}.jpg",
    "abstract_v002_{subset}_{image_id:012d}.png",
)
"""Names that images have: COCO 2014 and 2015, COCO 2017, abstract scenes."""
_LOOKED_AT = 50


@importer
def vqa(
    questions: Annotated[Path, typer.Option("--questions", metavar="FILE", help=f"{_QUESTIONS}.")],
    into: Into,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", metavar="FILE", help=f"{_ANNOTATIONS}; without, questions have no answers."),
    ] = None,
    images: ImagesIfAny = None,
    image_name: Annotated[
        str | None,
        typer.Option(
            "--image-name",
            metavar="PATTERN",
            show_default="the one of COCO's that the images have",
            help="An image's file by 'image_id' and 'subset' (the file's 'data_subtype'), like '{image_id:012d}.jpg'.",
        ),
    ] = None,
) -> None:
    """Turn VQA questions, with ten answers each, into shards. One sample per image, with all its questions."""
    report = into.report(questions=questions, annotations=annotations, images=images, image_name=image_name)
    if images is not None:
        existing_directory(images, "--images")
    if annotations is not None:
        existing_file(annotations, "--annotations")
    records = read_vqa(existing_file(questions, "--questions"), annotations, images, image_name, report)
    into.write(records, images=images, report=report)


class Annotation(NamedTuple):
    """What is kept of an annotation: of its answers the text, not who was how sure."""

    image_id: int | str | None
    answers: tuple[str, ...]
    types: dict[str, str]
    textless: int
    """Answers without a text."""


def read_vqa(
    questions: Path, annotations: Path | None, images: Path | None, image_name: str | None, report: Report
) -> list[Record]:
    """The images of a questions file in the order of their first question, each with its questions.

    Args:
        annotations: without, questions have no answers (the test splits).
        image_name: how an image's file follows from `image_id` and the subset, like "{image_id:012d}.jpg"; None looks
            which of the usual names the images have.
    Raises:
        ConfigError: `image_name` cannot be filled in.
        DataError: not such files, or annotations of other questions.
    """
    content = load(questions, _QUESTIONS)
    asked = content.get("questions") if isinstance(content, dict) else None
    if not isinstance(asked, list):
        raise DataError(f"{questions}: has no list 'questions'; give {_QUESTIONS}")
    subset = (text(content, "data_subtype") or "").replace("-dev", "")  # test-dev2015 asks about images of test2015
    ids = (image for image in (name(entry, "image_id") for entry in asked) if image is not None)
    pattern = image_name or _usual_name(images, subset, ids)
    known = _annotations(annotations, report) if annotations is not None else None
    unasked = dict.fromkeys(known or ())
    gathered = QuestionsByImage(report)
    for number, entry in enumerate(asked):
        image, id, question = name(entry, "image_id"), name(entry, "question_id"), text(entry, "question")
        if image is None or id is None or question is None:
            gathered.skip("question without 'image_id', 'question_id' or 'question'", f"questions[{number}]")
            continue
        annotation = known.get(id) if known is not None else Annotation(image, (), {}, 0)
        unasked.pop(id, None)
        if annotation is None or annotation.image_id != image:
            gathered.skip("question without an annotation of the same image", f"question_id {id}")
            continue
        file = _filled(pattern, image, subset)
        gathered.add(file, question, annotation.answers, str(id), annotation.types, {"image_id": image})
    for id in unasked:
        report.skip("annotation without a question", f"question_id {id}")
    records = gathered.records()
    if not records and asked and annotations is not None:
        raise DataError(f"{annotations}: has no annotation of a question of {questions}; give those of the same split")
    return records


def _annotations(path: Path, report: Report) -> dict[int | str, Annotation]:
    (entries,) = load_lists(path, ("annotations",), _ANNOTATIONS, _lean)
    report.count("annotations", len(entries))
    known: dict[int | str, Annotation] = {}
    for number, entry in enumerate(entries):
        id, annotation = entry if isinstance(entry, tuple) else (None, None)
        if id is None or annotation is None:
            report.skip("annotation without 'question_id' or 'answers'", f"annotations[{number}]")
        elif id in known:
            report.skip("annotation stands twice", f"question_id {id}")
        else:
            known[id] = annotation
            for _ in range(annotation.textless):
                report.skip("answer without a text", f"question_id {id}")
    return known


def _lean(entry: dict[str, Any]) -> Any:
    """Called while JSON is read: an answer becomes its text, an annotation what is kept of it.

    VQA v2 has 6.6 million answers of three keys each; as dicts they would fill gigabytes.
    """
    if "question_id" not in entry:
        answer = text(entry, "answer")
        return entry if answer is None else sys.intern(answer)
    answers = entry.get("answers")
    if not isinstance(answers, list):
        return entry
    texts = tuple(answer for answer in answers if isinstance(answer, str))
    types = {key: sys.intern(kind) for key in _TYPES if (kind := text(entry, key)) is not None}
    return name(entry, "question_id"), Annotation(name(entry, "image_id"), texts, types, len(answers) - len(texts))


def _usual_name(images: Path | None, subset: str, ids: Iterable[int | str]) -> str:
    """The usual name under which most of the first images lie; without images, the first."""
    fitting = [pattern for pattern in _NAMES if subset or "{subset}" not in pattern]
    if images is None:
        return fitting[0]
    first = list(islice(dict.fromkeys(islice(ids, 100 * _LOOKED_AT)), _LOOKED_AT))
    found = [sum((images / _filled(pattern, image, subset)).is_file() for image in first) for pattern in fitting]
    return fitting[found.index(max(found))]


def _filled(pattern: str, image: int | str, subset: str) -> str:
    text = str(image)
    number = text.isdecimal() and str(int(text)) == text  # not 0054: the name may need its zeros
    try:
        return pattern.format(image_id=int(text) if number else text, subset=subset)
    except (ValueError, KeyError, IndexError, AttributeError):
        raise ConfigError(
            f"--image-name {pattern!r}: cannot be filled in for image_id {image!r}; "
            "write something like '{image_id:012d}.jpg', '{image_id}.png' or 'COCO_{subset}_{image_id:012d}.jpg'"
        ) from None
