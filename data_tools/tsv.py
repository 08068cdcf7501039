"""`vlp-data tsv`: lines of image<TAB>caption."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_tools.importing import Record, Target, import_records
from data_tools.options import Images, Out, Overwrite, RegionDir, SamplesPerShard, existing_file
from data_tools.report import Report
from data_tools.writer import SAMPLES_PER_SHARD
from vlp.errors import DataError


def tsv(
    file: Annotated[Path, typer.Option("--file", help="UTF-8, no header, one image<TAB>caption a line.")],
    images: Images,
    out: Out,
    regions: RegionDir = None,
    samples_per_shard: SamplesPerShard = SAMPLES_PER_SHARD,
    overwrite: Overwrite = False,
) -> None:
    """Turn image<TAB>caption lines into shards. One sample per image, with all its captions."""
    report = Report({"command": "tsv", "file": str(file), "images": str(images), "regions": str(regions or "")})
    records = read_tsv(existing_file(file, "--file"), report)
    import_records(records, Target(images, regions, out, samples_per_shard, overwrite), report)


def read_tsv(path: Path, report: Report) -> list[Record]:
    """The images of a table in the order of their first line, each with its captions.

    Raises:
        DataError: the file is not UTF-8.
    """
    captions: dict[str, list[str]] = {}
    # Binary lines end at LF alone: text mode would also end them at a lone CR inside a caption.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{path} line {number}: is not UTF-8; convert the file first") from None
            if not text.strip():
                continue
            image, tab, caption = text.partition("\t")
            report.count("captions")
            if tab and image.strip():
                captions.setdefault(image.strip(), []).append(caption)
            else:
                report.skip("line without image<TAB>caption", f"line {number}")
    report.count("images", len(captions))
    return [Record(image, tuple(texts)) for image, texts in captions.items()]
