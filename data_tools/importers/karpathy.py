"""`vlp-data karpathy`: Karpathy's split files (dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from data_tools.importers.jsonfile import load_lists, name, text
from data_tools.importing.command import Into, Record, importer
from data_tools.options import ImagesIfAny, existing_directory, existing_file
from data_tools.report import Report
from vlp.errors import DataError

_WANTED = "Karpathy's dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json"


@importer
def karpathy(
    captions: Annotated[Path, typer.Option("--captions", metavar="FILE", help=f"{_WANTED}.")],
    into: Into,
    images: ImagesIfAny = None,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="NAME,...",
            help="Splits to take, by the file's own names: 'train,restval'; without, all that it has.",
        ),
    ] = "",
) -> None:
    """Turn Karpathy's splits of COCO or Flickr into shards. One sample per image, with all its captions."""
    report = into.report(captions=captions, images=images, split=split)
    splits = [name.strip() for name in split.split(",") if name.strip()]
    if images is not None:
        existing_directory(images, "--images")
    records = read_karpathy(existing_file(captions, "--captions"), splits, images, report)
    into.write(records, images=images, report=report)


def read_karpathy(path: Path, splits: Collection[str], images: Path | None, report: Report) -> list[Record]:
    """The images of the splits (of all, if none is named) in the file's order, each with its captions as written.

    An image lies below `images` in the folder that the file names (COCO's `val2014/`), or beside the others where there
    is no such folder.

    Raises:
        DataError: not such a file, or without one of the splits.
    """
    (entries,) = load_lists(path, ("images",), _WANTED, _lean)
    there = Counter(str(entry.get("split")) for entry in entries if isinstance(entry, dict))
    for split in splits:
        if split not in there:
            splits_there = ", ".join(f"{known} ({count:,})" for known, count in there.items()) or "none"
            raise DataError(f"{path}: has no images of the split '{split}'; its splits are {splits_there}")

    @cache
    def folder(wanted: str) -> str:
        return f"{wanted}/" if wanted and (images is None or (images / wanted).is_dir()) else ""

    records: dict[str, Record] = {}
    for number, entry in enumerate(entries):
        if splits and isinstance(entry, dict) and entry.get("split") not in splits:
            continue
        report.count("images")
        file = text(entry, "filename")
        if not file or not isinstance(entry.get("sentences"), list):
            report.skip("image without 'filename' or 'sentences'", f"images[{number}]")
            continue
        file = folder(text(entry, "filepath") or "") + file
        if file in records:
            report.skip("image stands twice", file)
            continue
        captions = tuple(sentence for sentence in entry["sentences"] if isinstance(sentence, str))
        report.count("captions", len(captions))
        for _ in range(len(entry["sentences"]) - len(captions)):
            report.skip("sentence without 'raw'", file)
        records[file] = Record(file, captions, metadata=_metadata(entry))
    return list(records.values())


def _lean(entry: dict[str, Any]) -> Any:
    """A sentence as its text alone: its tokens are two thirds of the file."""
    raw = text(entry, "raw")
    return entry if raw is None or "sentences" in entry else raw


def _metadata(entry: dict[str, Any]) -> dict[str, Any]:
    image = name(entry, "cocoid")
    image = name(entry, "imgid") if image is None else image
    found = {"image_id": image, "split": text(entry, "split")}
    return {key: value for key, value in found.items() if value is not None}
