"""`vlp-data tsv`: lines of image<TAB>caption."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from data_tools.importers.textfile import text_lines
from data_tools.importing.command import Into, Record, importer
from data_tools.options import ImagesIfAny, existing_file
from data_tools.report import Report


@importer
def tsv(
    file: Annotated[
        Path, typer.Option("--file", metavar="FILE", help="UTF-8, no header, one image<TAB>caption a line.")
    ],
    into: Into,
    images: ImagesIfAny = None,
) -> None:
    """Turn image<TAB>caption lines into shards. One sample per image, with all its captions."""
    report = into.report(file=file, images=images)
    into.write(read_tsv(existing_file(file, "--file"), report), images=images, report=report)


def read_tsv(path: Path, report: Report) -> list[Record]:
    """The images of a table in the order of their first line, each with its captions.

    Raises:
        DataError: the file is not UTF-8.
    """
    captions: dict[str, list[str]] = {}
    for number, line in text_lines(path):
        image, tab, caption = line.partition("\t")
        report.count("captions")
        if tab and image.strip():
            captions.setdefault(str(PurePosixPath(image.strip())), []).append(caption)
        else:
            report.skip("line without image<TAB>caption", f"line {number}")
    report.count("images", len(captions))
    return [Record(image, tuple(texts)) for image, texts in captions.items()]
