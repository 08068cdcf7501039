"""`vlp-data flickr`: Flickr8k and Flickr30k token files with the official split lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.importers.textfile import text_lines
from data_tools.importing.command import Into, Record, importer
from data_tools.options import ImagesIfAny, existing_file
from data_tools.report import Report
from vlp.errors import ConfigError, DataError

_END = ".jpg"


@importer
def flickr(
    tokens: Annotated[
        Path, typer.Option("--tokens", metavar="FILE", help="Lines of <image>.jpg#<number><TAB>caption.")
    ],
    split: Annotated[
        Path, typer.Option("--split", metavar="FILE", help="The images to take, one a line: an official split list.")
    ],
    into: Into,
    images: ImagesIfAny = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE.npz", help="One vector per image: 'image_id' and 'features'."),
    ] = None,
) -> None:
    """Turn Flickr8k or Flickr30k into shards: photos, regions (--regions), or one vector per image (--features)."""
    if features is not None and into.choices.regions is not None:
        raise ConfigError("--features and --regions: a sample has the one or the other; leave one out")
    report = into.report(tokens=tokens, split=split, images=images, features=features)
    if features is not None:
        existing_file(features, "--features")
    records = read_flickr(existing_file(tokens, "--tokens"), existing_file(split, "--split"), report)
    into.write(records, images=images, regions=features, report=report)


def read_flickr(tokens: Path, split: Path, report: Report) -> list[Record]:
    """The images of a split list in its order, each with its captions.

    Args:
        tokens: lines of `<image>.jpg#<number><TAB>caption`. The image's name ends at the first `.jpg`, since Flickr8k's
            file has a `...jpg.1#0`.
        split: one image a line, with `.jpg` or without.
    Raises:
        DataError: a file that is not UTF-8, or one that is not such a file.
    """
    captions = _captions(tokens, report)
    names: dict[str, None] = {}
    for number, line in text_lines(split):
        name = _name(line.strip()) or line.strip() + _END
        if name in names:
            report.skip("image stands twice in --split", f"line {number}")
        names[name] = None
    if not names.keys() & captions.keys():
        raise DataError(f"{split}: names no image of {tokens}; give a list like Flickr_8k.trainImages.txt")
    report.count("images of the split", len(names))
    records = []
    for name in names:
        if name in captions:
            records.append(Record(name, tuple(captions.pop(name))))
        else:
            report.skip("image of --split without a caption in --tokens", name)
    for name in captions:
        report.skip("image not in --split", name)
    return records


def _captions(tokens: Path, report: Report) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for number, line in text_lines(tokens):
        key, tab, caption = line.partition("\t")
        name = _name(key.strip())
        report.count("captions")
        if tab and name:
            captions.setdefault(name, []).append(caption)
        else:
            report.skip("line without <image>.jpg#<number><TAB>caption", f"line {number}")
    if not captions:
        raise DataError(f"{tokens}: has no line <image>.jpg#<number><TAB>caption; give a file like Flickr8k.token.txt")
    return captions


def _name(key: str) -> str:
    """Up to the first `.jpg`; nothing where there is none."""
    stem, end, _ = key.partition(_END)
    return stem + end if stem and end else ""
