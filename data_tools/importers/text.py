"""`vlp-data text`: plain text files, as a dataset of texts alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from data_tools.importers.textfile import text_lines
from data_tools.importing.command import Into, Record, importer
from data_tools.options import files_of
from data_tools.report import Report

TEXTS_PER_SAMPLE = 50
"""A member of a tar takes at least 1 KB: texts of a hundred letters, each in a sample of its own, would be a tenth of
their shards. Every text is an example all the same, and is shuffled as one."""
_MAX_SAMPLE = 1 << 20
"""Characters of one text, and about those of one sample: the loader reads a sample's JSON whole."""


@importer(images=False)
def text(
    files: Annotated[
        list[Path],
        typer.Option("--file", metavar="PATH", help="UTF-8 text, or a folder of *.txt; may be given several times."),
    ],
    into: Into,
    paragraphs: Annotated[
        bool, typer.Option("--paragraphs", help="A text is what stands between blank lines; else it is a line.")
    ] = False,
    texts_per_sample: Annotated[
        int, typer.Option("--texts-per-sample", min=1, help="Texts that share one member of a tar.")
    ] = TEXTS_PER_SAMPLE,
) -> None:
    """Turn plain text into shards of a dataset without images. A text is a line, or with --paragraphs a paragraph."""
    report = into.report(file=files, paragraphs=paragraphs, texts_per_sample=texts_per_sample)
    found = files_of(files, "--file", ".txt")
    records = read_text(found, report, paragraphs=paragraphs, texts_per_sample=texts_per_sample)
    into.write(records, report=report, text_only=True)


def read_text(files: Iterable[Path], report: Report, *, paragraphs: bool, texts_per_sample: int) -> Iterator[Record]:
    """The texts of UTF-8 files in their order, some to a record; nothing but these is held in memory.

    Args:
        paragraphs: a text is what stands between blank lines, its lines joined by blanks; else it is a line.
        texts_per_sample: at most so many texts make a record. No record has texts of two files.
    """
    number = 0
    for path in files:
        report.count("files")
        texts: list[str] = []
        size = 0
        for line, text in _texts(path, report, paragraphs):
            report.count("texts")
            if len(text) > _MAX_SAMPLE:
                report.skip(f"text of more than {_MAX_SAMPLE:,} characters", f"{path.name} line {line}")
                continue
            if texts and (len(texts) == texts_per_sample or size + len(text) > _MAX_SAMPLE):
                yield _record(number, path, texts)
                number, texts, size = number + 1, [], 0
            texts.append(text)
            size += len(text)
        if texts:
            yield _record(number, path, texts)
            number += 1


def _record(number: int, path: Path, texts: list[str]) -> Record:
    return Record(f"{number:09d}", tuple(texts), metadata={"source": path.name})


def _texts(path: Path, report: Report, paragraphs: bool) -> Iterator[tuple[int, str]]:
    def bad(line: int, reason: str) -> None:
        report.skip(f"line that {reason}", f"{path.name} line {line}")

    if not paragraphs:
        yield from text_lines(path, bad=bad)
        return
    first, lines = 0, list[str]()
    for number, line in text_lines(path, blank=True, bad=bad):
        if line.strip():
            first = first if lines else number
            lines.append(line.strip())
        elif lines:
            yield first, " ".join(lines)
            lines = []
    if lines:
        yield first, " ".join(lines)
