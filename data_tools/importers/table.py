"""`vlp-data csv` and `vlp-data jsonl`: tables whose columns (or keys) the user names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from csv import Error as CsvError
from csv import reader
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from data_tools.importers.textfile import text_lines
from data_tools.importing.command import Into, Record, importer
from data_tools.options import ImagesIfAny, existing_file
from data_tools.report import Report
from vlp.errors import ConfigError, DataError, nearest
from vlp.types import Question

_DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}

Image = Annotated[str, typer.Option("--image", metavar="COLUMN", help="Has the image's path below --images.")]
Captions = Annotated[
    list[str] | None,
    typer.Option(
        "--caption",
        metavar="COLUMN",
        show_default="caption, where no --question is named",
        help="Has a caption; may be given several times.",
    ),
]
Asked = Annotated[str | None, typer.Option("--question", metavar="COLUMN", help="Has a question.")]
Answers = Annotated[
    list[str] | None,
    typer.Option("--answer", metavar="COLUMN", help="Has an answer to the question; may be given several times."),
]
QuestionId = Annotated[str | None, typer.Option("--question-id", metavar="COLUMN", help="Has the question's id.")]


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that are read."""

    image: str
    captions: tuple[str, ...] = ()
    question: str | None = None
    answers: tuple[str, ...] = ()
    question_id: str | None = None
    separator: str | None = None
    """Between the answers of one cell."""

    def all(self) -> list[str]:
        optional = (self.question, self.question_id)
        return [self.image, *self.captions, *self.answers, *(name for name in optional if name is not None)]


@importer
def csv(
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="UTF-8; its first line names the columns.")],
    into: Into,
    images: ImagesIfAny = None,
    image: Image = "image",
    caption: Captions = None,
    question: Asked = None,
    answer: Answers = None,
    question_id: QuestionId = None,
    separator: Annotated[
        str | None,
        typer.Option("--answer-separator", metavar="TEXT", help="Between the answers, where a cell has several."),
    ] = None,
    delimiter: Annotated[
        str, typer.Option("--delimiter", help="Between cells: one character, or tab, comma, semicolon, pipe.")
    ] = "comma",
) -> None:
    """Turn a table with a header into shards. One sample per image, with the captions and questions of all its rows."""
    columns = _columns(image, caption, question, answer, question_id, separator)
    between = _DELIMITERS.get(delimiter, delimiter)
    if len(between) != 1 or between in '"\r\n':
        raise ConfigError(f"--delimiter {delimiter}: give one character, or one of {', '.join(_DELIMITERS)}")
    report = into.report(file=file, images=images, delimiter=between, **_told(columns))
    records = read_csv(existing_file(file, "--file"), columns, between, report)
    into.write(records, images=images, report=report)


@importer
def jsonl(
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="UTF-8; every line is a JSON object.")],
    into: Into,
    images: ImagesIfAny = None,
    image: Image = "image",
    caption: Captions = None,
    question: Asked = None,
    answer: Answers = None,
    question_id: QuestionId = None,
) -> None:
    """Turn lines of JSON into shards. One sample per image, with the captions and questions of all its lines.

    A caption or an answer is a text or a list of texts; a question is a text, or a list of objects with 'question',
    'answers' and 'question_id'.
    """
    columns = _columns(image, caption, question, answer, question_id, None)
    report = into.report(file=file, images=images, **_told(columns))
    into.write(read_jsonl(existing_file(file, "--file"), columns, report), images=images, report=report)


def read_csv(path: Path, columns: Columns, delimiter: str, report: Report) -> list[Record]:
    """The images of a table in the order of their first row, with the texts of all their rows.

    Raises:
        DataError: not UTF-8, a column that the header lacks, or quotes that do not close.
    """
    lines = (f"{line}\n" for _, line in text_lines(path, blank=True))
    cells = reader(lines, delimiter=delimiter)
    try:
        header = [name.strip() for name in next(cells, [])]
        for name in columns.all():
            if name not in header:
                raise DataError(f"{path}: its first line names no column '{name}'{nearest(name, header)}")
        return _gathered(_rows(cells, header, report), columns, report)
    except CsvError as error:
        raise DataError(f"{path} line {cells.line_num}: {error}; mend its quotes or name another --delimiter") from None


def _rows(cells: Any, header: list[str], report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for row in cells:
        place = f"line {cells.line_num}"
        if not row:
            continue
        if len(row) != len(header):
            report.skip(f"row that has not the header's {len(header)} cells", place)
            continue
        # An empty cell says nothing.
        yield place, {name: cell for name, cell in zip(header, row, strict=True) if cell.strip()}


def read_jsonl(path: Path, columns: Columns, report: Report) -> list[Record]:
    """The images of lines of JSON in the order of their first line, with the texts of all their lines.

    Raises:
        DataError: not UTF-8.
    """
    return _gathered(_objects(path, report), columns, report)


def _objects(path: Path, report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in text_lines(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            report.skip("line that is not JSON", f"line {number} column {error.colno}")
            continue
        except RecursionError:
            value = None
        if isinstance(value, dict):
            yield f"line {number}", {name: cell for name, cell in value.items() if cell is not None}
        else:
            report.skip("line that is not a JSON object", f"line {number}")


class _Bad(Exception):
    """A cell that is not what its column should have; its argument is the column."""


def _gathered(rows: Iterable[tuple[str, Mapping[str, Any]]], columns: Columns, report: Report) -> list[Record]:
    captions: dict[str, list[str]] = {}
    questions: dict[str, list[Question]] = {}
    for place, row in rows:
        report.count("rows")
        try:
            image = row.get(columns.image)
            if not isinstance(image, str) or not image.strip():
                raise _Bad(columns.image)
            said = [text for name in columns.captions for text in _texts(row, name)]
            asked = _questions(row, columns)
        except _Bad as bad:
            report.skip(f"row without a proper '{bad}'", place)
            continue
        file = str(PurePosixPath(image.strip()))
        report.count("captions", len(said))
        captions.setdefault(file, []).extend(said)
        if asked:
            report.count("questions", len(asked))
            questions.setdefault(file, []).extend(asked)
    report.count("images", len(captions))
    return [Record(file, tuple(texts), tuple(questions.get(file, ()))) for file, texts in captions.items()]


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    value = row.get(name, [])
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, bool) or not isinstance(text, (str, int, float)) for text in texts):
        raise _Bad(name)
    return [str(text) for text in texts]


def _questions(row: Mapping[str, Any], columns: Columns) -> list[Question]:
    if columns.question is None:
        return []
    value = row.get(columns.question, [])
    if isinstance(value, list):
        return [_question(item, columns.question) for item in value]
    if not isinstance(value, str):
        raise _Bad(columns.question)
    answers = [text for name in columns.answers for text in _texts(row, name)]
    if columns.separator:
        answers = [part.strip() for text in answers for part in text.split(columns.separator) if part.strip()]
    name = row.get(columns.question_id, "") if columns.question_id is not None else ""
    return [Question(value, tuple(answers), str(name).strip())]


def _question(item: Any, column: str) -> Question:
    """A question as the JSON of our samples has it."""
    if not isinstance(item, dict) or not isinstance(item.get("question"), str):
        raise _Bad(column)
    name = item.get("question_id")
    return Question(item["question"], tuple(_texts(item, "answers")), "" if name is None else str(name))


def _columns(
    image: str,
    caption: list[str] | None,
    question: str | None,
    answer: list[str] | None,
    question_id: str | None,
    separator: str | None,
) -> Columns:
    if question is None and (answer or question_id):
        raise ConfigError("--answer and --question-id go with a question; name its column with --question")
    captions = tuple(caption or ()) or (() if question is not None else ("caption",))
    return Columns(image, captions, question, tuple(answer or ()), question_id, separator)


def _told(columns: Columns) -> dict[str, object]:
    return {
        "image": columns.image,
        "caption": columns.captions,
        "question": columns.question,
        "answer": columns.answers,
        "question_id": columns.question_id,
        "answer_separator": columns.separator,
    }
