"""`vlp-data folder`: photo.jpg beside photo.txt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data_tools.importing.command import Into, Record, importer
from data_tools.options import Images, existing_directory
from data_tools.report import Report
from vlp.data.imagefile import IMAGE_EXTENSIONS


@importer
def folder(
    images: Images,
    into: Into,
) -> None:
    """Turn a folder of photos into shards. Beside photo.jpg lies photo.txt, one caption a line."""
    report = into.report(images=images)
    into.write(read_folder(existing_directory(images, "--images"), report), images=images, report=report)


def read_folder(images: Path, report: Report, below: str = "") -> Iterator[Record]:
    """The images of a folder and of those below it, by name, with the captions of the text files beside them.

    One folder's list of files is in memory at a time. Links to folders are not followed.

    Args:
        below: the folder that is walked, relative to `images`, with a slash at its end; all of them without.
    """
    with os.scandir(images / below) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    texts = dict.fromkeys(entry.name for entry in entries if entry.name.lower().endswith(".txt") and entry.is_file())
    used = set()
    for entry in entries:
        stem, _, ending = entry.name.rpartition(".")
        if entry.is_dir(follow_symlinks=False):
            yield from read_folder(images, report, f"{below}{entry.name}/")
        elif ending.lower() in IMAGE_EXTENSIONS:
            report.count("images")
            text = f"{stem}.txt"
            if text not in texts:
                report.skip("image without a .txt beside it", below + entry.name)
                continue
            used.add(text)
            captions = _captions(images, below + text, report)
            if captions:
                yield Record(below + entry.name, captions)
    for text in texts:
        if text not in used:
            report.skip("caption file without an image", below + text)


def _captions(images: Path, file: str, report: Report) -> tuple[str, ...]:
    """The lines of a caption file; one empty caption where it is blank, and nothing where it cannot be read."""
    try:
        lines = (images / file).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        report.skip("caption file that is not UTF-8", file)
        return ()
    # A text file ends in a line feed: the nothing after it is no caption.
    captions = tuple(line for line in lines if line.strip()) or ("",)
    report.count("captions", len(captions))
    return captions
